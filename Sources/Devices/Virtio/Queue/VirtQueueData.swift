import Hardware

/// Access to the buffers of the chain that was taken last.
extension VirtQueue {
  /// Segments that one transfer is made of at most: as many as preadv takes (UIO_MAXIOV).
  public static let segmentLimit = 1024

  /// Takes the next device-readable bytes into the front of `bytes`.
  /// - Returns: how many there were, at most `count`.
  public mutating func takeBytes(_ count: Int) throws(DMAError) -> Int {
    if bytes.count < count { bytes.append(contentsOf: repeatElement(0, count: count - bytes.count)) }
    let port = port
    var offset = 0
    while offset < count, let buffer = try chain.readable.peek(upTo: UInt64(count - offset)) {
      let taken = Int(buffer.count)
      try port.read(from: buffer.address, into: &bytes, offset..<offset + taken)
      chain.readable.advance(by: buffer.count)
      offset += taken
    }
    return offset
  }

  /// Writes bytes into the next device-writable buffers.
  /// - Parameter count: how many of them, from the front; nil for all.
  /// - Returns: how many found room.
  public mutating func put(_ bytes: [UInt8], count: Int? = nil) throws(DMAError) -> Int {
    let count = count ?? bytes.count
    var offset = 0
    while offset < count, let buffer = try chain.writable.peek(upTo: UInt64(count - offset)) {
      let taken = Int(buffer.count)
      try port.write(bytes, offset..<offset + taken, to: buffer.address)
      chain.writable.advance(by: buffer.count)
      offset += taken
    }
    return offset
  }

  /// Takes the next buffers as guest physical runs into `segments`, adjacent ones joined, each known to be RAM.
  /// - Parameters:
  ///   - access: `.read` for device-readable buffers, `.write` for device-writable ones.
  ///   - limit: bytes at most.
  ///   - request: of this queue's `port`, kept until the segments have been used.
  /// - Returns: bytes taken. Less than asked for at the chain's end, or when `segmentLimit` runs are reached: call
  ///   again then.
  public mutating func takeSegments(
    for access: DMAAccess, limit: UInt64, during request: borrowing RequestInFlight
  ) throws(DMAError) -> UInt64 {
    if access.contains(.write) {
      try Self.take(from: &chain.writable, into: &segments, for: access, limit: limit, port: port)
    } else {
      try Self.take(from: &chain.readable, into: &segments, for: access, limit: limit, port: port)
    }
  }

  private static func take(
    from buffers: inout DescriptorChain.Buffers, into segments: inout [PhysicalSegment], for access: DMAAccess,
    limit: UInt64, port: any DMAPort
  ) throws(DMAError) -> UInt64 {
    segments.removeAll(keepingCapacity: true)
    var total: UInt64 = 0
    while let buffer = try buffers.peek(upTo: limit &- total) {
      let segment = try port.translate(buffer.address, count: Int(buffer.count), for: access)
      let count = UInt64(segment.count)
      guard count > 0, port.memory.contains(segment.address, count: count) else { throw port.unclaimed() }
      if let last = segments.last, last.address &+ UInt64(last.count) == segment.address {
        segments[segments.count - 1].count += segment.count
      } else {
        guard segments.count < segmentLimit else { return total }
        segments.append(segment)
      }
      buffers.advance(by: count)
      total &+= count
    }
    return total
  }

  /// Sets the last device-writable byte aside, where a request has its status.
  /// - Returns: its address, nil where the chain has no room left.
  public mutating func takeLastByte() throws(VirtQueueError) -> UInt64? {
    do { return try chain.writable.takeLastByte() } catch { throw .memory(error) }
  }

  /// Writes a byte that was set aside.
  public func store(_ byte: UInt8, at address: UInt64) throws(VirtQueueError) {
    let bytes: InlineArray<1, UInt8> = [byte]
    do { try port.write(RawSpan(_elements: bytes.span), to: address) } catch { throw .memory(error) }
  }
}
