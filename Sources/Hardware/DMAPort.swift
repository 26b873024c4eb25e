/// What a request wants of memory.
public struct DMAAccess: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let read = DMAAccess(rawValue: 1)
  public static let write = DMAAccess(rawValue: 2)
}

/// Why a request did not reach memory.
public enum DMAError: Error, Hashable, Sendable {
  /// Bus Master Enable is clear, or the function is gone.
  case disabled
  /// The IOMMU refused it, and has recorded the fault.
  case translation
  /// It passed, but what is there is not RAM; or it would go on at address 0 after the top of the address space.
  case notMemory
}

/// Refuses a transfer that would go on at address 0 after the top of the address space. Addresses of requests have 64
/// bits (PCI Express Base 2.2.4.1), so nothing lies there.
///
/// The transfers of `DMAPort` keep this rule by themselves. A device that cuts a transfer into requests checks the
/// whole of it first: for each part alone, the part behind the top is a request like any other.
@inline(__always)
public func checkTransfer(at address: UInt64, count: UInt64) throws(DMAError) {
  // The last byte may be the last one there is.
  guard count == 0 || !address.addingReportingOverflow(count - 1).overflow else { throw .notMemory }
}

/// A run of guest physical addresses.
public struct PhysicalSegment: Hashable, Sendable {
  public var address: UInt64
  /// In bytes, not zero.
  public var count: Int

  public init(address: UInt64, count: Int) {
    self.address = address
    self.count = count
  }
}

/// The one way by which a device reaches memory: Bus Master Enable, the IOMMU and unplug sit in it.
///
/// A request is in flight from before its translation until its last access of memory: `read`, `write`, the numbered
/// loads and stores see to that themselves. Who uses `translate` or `resolve` holds a `RequestInFlight` meanwhile.
public protocol DMAPort: AnyObject, Sendable {
  /// Where translated requests end up.
  var memory: any PhysicalMemory { get }

  /// The requests on their way.
  var inFlight: RequestsInFlight { get }

  /// The same as the two of `inFlight`, which a caller that only knows the protocol reaches without counting a
  /// reference.
  func beginRequest() -> RequestsInFlight.Phase
  func endRequest(_ phase: RequestsInFlight.Phase)

  /// Translates the start of a request, which is in flight.
  /// - Parameter count: bytes wanted, not zero.
  /// - Returns: the physical run that `address` starts, at most `count` bytes long, all of it within
  ///   one translation. Whether it is RAM is for the access to find out.
  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment

  /// Notes, where the function's driver can see it, that a request of this port found nothing that answers it.
  func noteUnclaimed()
}

extension DMAPort {
  public func noteUnclaimed() {}

  /// The error of a request that passed and that nothing answers. Another function's BAR does not answer: a device may
  /// hold a lock while it makes a request, and an access of the other one's registers may wait for that lock or for a
  /// request that itself waits, so two devices could wait for each other for ever.
  public func unclaimed() -> DMAError {
    noteUnclaimed()
    return .notMemory
  }

  public func beginRequest() -> RequestsInFlight.Phase { inFlight.begin() }
  public func endRequest(_ phase: RequestsInFlight.Phase) { inFlight.end(phase) }

  /// Begins a request that goes on for as long as the caller keeps what is returned.
  public func request() -> RequestInFlight { RequestInFlight(inFlight) }

  /// Appends the physical runs of a whole request, adjacent ones joined, each known to be RAM.
  /// - Parameter request: kept until the segments have been used.
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
      if joins, let last = segments.last, last.address &+ UInt64(last.count) == segment.address {
        segments[segments.count - 1].count += segment.count
      } else {
        segments.append(segment)
      }
      joins = true
      address &+= UInt64(segment.count)
      remaining -= segment.count
    }
  }

  public func read(from address: UInt64, into bytes: inout MutableRawSpan) throws(DMAError) {
    try checkTransfer(at: address, count: UInt64(bytes.byteCount))
    let phase = beginRequest()
    defer { endRequest(phase) }
    var offset = 0
    while offset < bytes.byteCount {
      let segment = try translate(address &+ UInt64(offset), count: bytes.byteCount - offset, for: .read)
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
      guard memory.write(bytes.extracting(offset..<offset + segment.count), to: segment.address) else {
        throw unclaimed()
      }
      offset += segment.count
    }
  }

  // Single aligned accesses: an aligned one never crosses a translation.

  public func loadUInt16(at address: UInt64) throws(DMAError) -> UInt16 {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard let value = memory.loadUInt16(at: try translate(address, count: 2, for: .read).address) else {
      throw unclaimed()
    }
    return value
  }

  public func loadUInt32(at address: UInt64) throws(DMAError) -> UInt32 {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard let value = memory.loadUInt32(at: try translate(address, count: 4, for: .read).address) else {
      throw unclaimed()
    }
    return value
  }

  public func loadUInt64(at address: UInt64) throws(DMAError) -> UInt64 {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard let value = memory.loadUInt64(at: try translate(address, count: 8, for: .read).address) else {
      throw unclaimed()
    }
    return value
  }

  /// Two loads, in order, by one translation.
  /// - Parameter address: a multiple of 16.
  public func loadUInt64Pair(at address: UInt64) throws(DMAError) -> (low: UInt64, high: UInt64) {
    let phase = beginRequest()
    defer { endRequest(phase) }
    let segment = try translate(address, count: 16, for: .read)
    guard segment.count == 16, let low = memory.loadUInt64(at: segment.address),
      let high = memory.loadUInt64(at: segment.address &+ 8)
    else { throw unclaimed() }
    return (low, high)
  }

  public func storeUInt16(_ value: UInt16, at address: UInt64) throws(DMAError) {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard memory.storeUInt16(value, at: try translate(address, count: 2, for: .write).address) else {
      throw unclaimed()
    }
  }

  public func storeUInt32(_ value: UInt32, at address: UInt64) throws(DMAError) {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard memory.storeUInt32(value, at: try translate(address, count: 4, for: .write).address) else {
      throw unclaimed()
    }
  }

  public func storeUInt64(_ value: UInt64, at address: UInt64) throws(DMAError) {
    let phase = beginRequest()
    defer { endRequest(phase) }
    guard memory.storeUInt64(value, at: try translate(address, count: 8, for: .write).address) else {
      throw unclaimed()
    }
  }
}

/// What gives a function its memory port: the IOMMU, or the board where there is none.
public protocol DMARemapper: AnyObject, Sendable {
  func makePort(for requester: Requester) -> any DMAPort

  /// The same, and requests with PASID, translation requests and page requests.
  func makeRequestPort(for requester: Requester) -> any RequestPort
}
