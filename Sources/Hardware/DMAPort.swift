/// The rights to memory that a request needs.
public struct DMAAccess: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let read = DMAAccess(rawValue: 1)
  public static let write = DMAAccess(rawValue: 2)
  /// The read fetches instructions: Execute Requested of the PASID prefix. Used together with `read`.
  public static let execute = DMAAccess(rawValue: 4)
}

/// The reason why a request did not reach memory.
public enum DMAError: Error, Hashable, Sendable {
  /// Bus Master Enable is clear, or the function was removed.
  case disabled
  /// The IOMMU refused the request and recorded the fault.
  case translation
  /// The translated address is not in RAM, or the transfer would wrap past the top of the address space to address 0.
  case notMemory
}

/// Throws if a transfer would wrap past the top of the address space to address 0. Addresses of requests have 64 bits
/// (PCI Express Base 2.2.4.1).
///
/// The transfers of `DMAPort` check this themselves. A device that splits a transfer into requests must check the whole
/// transfer first: each request alone looks valid, even a request past the wrap.
@inline(__always)
public func checkTransfer(at address: UInt64, count: UInt64) throws(DMAError) {
  // The transfer may end at the very last byte.
  guard count == 0 || !address.addingReportingOverflow(count - 1).overflow else { throw .notMemory }
}

/// A contiguous range of guest physical addresses.
public struct PhysicalSegment: Hashable, Sendable {
  public var address: UInt64
  /// The size in bytes, not zero.
  public var count: Int

  public init(address: UInt64, count: Int) {
    self.address = address
    self.count = count
  }
}

extension [PhysicalSegment] {
  /// Extends the last segment by an adjacent one.
  /// - Returns: false if the segment does not follow the last one.
  public mutating func join(_ segment: PhysicalSegment) -> Bool {
    guard let last, last.address &+ UInt64(last.count) == segment.address else { return false }
    self[count - 1].count += segment.count
    return true
  }
}

/// The only way by which a device reaches memory. Bus Master Enable, the IOMMU and hot-unplug act on the port.
///
/// A request is in flight from before its translation until its last memory access. `read`, `write` and the sized loads
/// and stores count themselves as in flight. A caller of `translate` or `resolve` must hold a `RequestInFlight`.
public protocol DMAPort: AnyObject, Sendable {
  /// The memory that translated requests access.
  var memory: any PhysicalMemory { get }

  /// The count of the port's requests in flight.
  var inFlight: RequestsInFlight { get }

  /// Begins and ends a request of `inFlight`. As requirements of the protocol they save callers a retain and a release
  /// of `inFlight`.
  func beginRequest() -> RequestsInFlight.Phase
  func endRequest(_ phase: RequestsInFlight.Phase)

  /// Translates the start of a request that is in flight.
  /// - Parameter count: size of the request in bytes, not zero.
  /// - Returns: the physical segment at `address`: at most `count` bytes, all within one translation. It may lie
  ///   outside RAM; the access itself checks that.
  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment

  /// Handles a 4-byte write that no RAM answers, if the write is an interrupt request.
  /// - Parameter address: the translated address.
  /// - Returns: whether the write is an interrupt request.
  func sendMessage(_ data: UInt32, to address: UInt64) -> Bool

  /// Records that no memory answered a request of this port. The function's driver can see the record.
  func noteUnclaimed()
}

extension DMAPort {
  public func sendMessage(_ data: UInt32, to address: UInt64) -> Bool { false }
  public func noteUnclaimed() {}

  /// Records that no memory answered a translated request, and returns its error. BARs of other functions do not answer
  /// requests (no peer-to-peer), because two devices could deadlock: a device may hold a lock during its request, and
  /// the access to its peer's registers might wait for that lock or for a request that waits in turn.
  public func unclaimed() -> DMAError {
    noteUnclaimed()
    return .notMemory
  }

  public func beginRequest() -> RequestsInFlight.Phase { inFlight.begin() }
  public func endRequest(_ phase: RequestsInFlight.Phase) { inFlight.end(phase) }

  /// Begins a request. It is in flight for as long as the returned value exists.
  public func request() -> RequestInFlight { RequestInFlight(inFlight) }

  /// Appends the physical segments of a whole request. It joins adjacent segments and checks that all are RAM.
  /// - Parameter request: the request in flight. The caller keeps it until it no longer uses the segments.
  public func resolve(
    _ address: UInt64, count: Int, for access: DMAAccess, into segments: inout [PhysicalSegment],
    during request: borrowing RequestInFlight
  ) throws(DMAError) {
    try checkTransfer(at: address, count: UInt64(count))
    var address = address
    var remaining = count
    var joins = false
    while remaining > 0 {
      let segment = try translate(address, count: remaining, for: access)
      guard memory.contains(segment.address, count: UInt64(segment.count)) else { throw unclaimed() }
      if !joins || !segments.join(segment) { segments.append(segment) }
      joins = true
      address &+= UInt64(segment.count)
      remaining -= segment.count
    }
  }

  /// - Parameter access: the rights that the request needs, `.read` among them.
  public func read(
    from address: UInt64, into bytes: inout MutableRawSpan, for access: DMAAccess = .read
  ) throws(DMAError) {
    try checkTransfer(at: address, count: UInt64(bytes.byteCount))
    let phase = beginRequest()
    defer { endRequest(phase) }
    var offset = 0
    while offset < bytes.byteCount {
      let segment = try translate(address &+ UInt64(offset), count: bytes.byteCount - offset, for: access)
      var part = bytes._mutatingExtracting(offset..<offset + segment.count)
      guard memory.read(from: segment.address, into: &part) else { throw unclaimed() }
      offset += segment.count
    }
  }

  public func write(_ bytes: RawSpan, to address: UInt64) throws(DMAError) {
    try checkTransfer(at: address, count: UInt64(bytes.byteCount))
    let phase = beginRequest()
    defer { endRequest(phase) }
    var offset = 0
    while offset < bytes.byteCount {
      let segment = try translate(address &+ UInt64(offset), count: bytes.byteCount - offset, for: .write)
      let part = bytes.extracting(offset..<offset + segment.count)
      guard memory.write(part, to: segment.address) || sendMessage(part, to: segment.address) else {
        throw unclaimed()
      }
      offset += segment.count
    }
  }

  private func sendMessage(_ bytes: RawSpan, to address: UInt64) -> Bool {
    guard bytes.byteCount == 4 else { return false }
    let bytes = Span<UInt8>(_bytes: bytes)
    return sendMessage((0..<4).reduce(0) { $0 | UInt32(bytes[$1]) << UInt32(8 * $1) }, to: address)
  }

  // MARK: Single accesses
  //
  // The addresses of single accesses are aligned, so no access crosses a boundary between translations.

  /// Translates and performs a single access, counted as in flight meanwhile.
  @inline(__always)
  private func single<Value>(
    _ address: UInt64, count: Int, for access: DMAAccess, _ perform: (PhysicalSegment) -> Value?
  ) throws(DMAError) -> Value {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard let value = perform(try translate(address, count: count, for: access)) else { throw unclaimed() }
    return value
  }

  public func loadUInt16(at address: UInt64) throws(DMAError) -> UInt16 {
    try single(address, count: 2, for: .read) { memory.loadUInt16(at: $0.address) }
  }

  public func loadUInt32(at address: UInt64) throws(DMAError) -> UInt32 {
    try single(address, count: 4, for: .read) { memory.loadUInt32(at: $0.address) }
  }

  public func loadUInt64(at address: UInt64) throws(DMAError) -> UInt64 {
    try single(address, count: 8, for: .read) { memory.loadUInt64(at: $0.address) }
  }

  /// Loads two values in order, with one translation.
  /// - Parameter address: a multiple of 16.
  public func loadUInt64Pair(at address: UInt64) throws(DMAError) -> (low: UInt64, high: UInt64) {
    try single(address, count: 16, for: .read) { segment in
      guard segment.count == 16, let low = memory.loadUInt64(at: segment.address),
        let high = memory.loadUInt64(at: segment.address &+ 8)
      else { return nil }
      return (low, high)
    }
  }

  public func storeUInt16(_ value: UInt16, at address: UInt64) throws(DMAError) {
    try single(address, count: 2, for: .write) { memory.storeUInt16(value, at: $0.address) ? () : nil }
  }

  public func storeUInt32(_ value: UInt32, at address: UInt64) throws(DMAError) {
    try single(address, count: 4, for: .write) { segment in
      memory.storeUInt32(value, at: segment.address) || sendMessage(value, to: segment.address) ? () : nil
    }
  }

  public func storeUInt64(_ value: UInt64, at address: UInt64) throws(DMAError) {
    try single(address, count: 8, for: .write) { memory.storeUInt64(value, at: $0.address) ? () : nil }
  }
}
