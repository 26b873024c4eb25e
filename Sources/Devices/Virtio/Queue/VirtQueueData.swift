import Hardware

/// Access to the buffers of the chain that `next` took last.
extension VirtQueue {
  /// The most segments of one transfer: the limit of preadv (UIO_MAXIOV).
  public static let segmentLimit = 1024

  /// Reads the next device-readable bytes into the front of `bytes`.
  /// - Returns: the number of bytes, at most `count`.
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
  /// - Parameter count: the number of bytes, from the front; nil for all.
  /// - Returns: the number of bytes for which there was room.
  public mutating func put(_ bytes: [UInt8], count: Int? = nil) throws(DMAError) -> Int {
    try put(bytes, 0..<(count ?? bytes.count))
  }

  /// Writes a range of bytes into the next device-writable buffers.
  /// - Returns: the number of bytes for which there was room.
  mutating func put(_ bytes: [UInt8], _ range: Range<Int>) throws(DMAError) -> Int {
    var offset = range.lowerBound
    while offset < range.upperBound, let buffer = try chain.writable.peek(upTo: UInt64(range.upperBound - offset)) {
      let taken = Int(buffer.count)
      try port.write(bytes, offset..<offset + taken, to: buffer.address)
      chain.writable.advance(by: buffer.count)
      offset += taken
    }
    return offset - range.lowerBound
  }

  /// Translates the next buffers to physical segments in `segments`. Joins adjacent ones and checks that all are RAM.
  /// - Parameters:
  ///   - access: `.read` for device-readable buffers, `.write` for device-writable ones.
  ///   - limit: the most bytes to take.
  ///   - request: a request of `port`, which the caller keeps until it no longer uses the segments.
  /// - Returns: the number of bytes taken. Less than `limit` at the chain's end, or when `segmentLimit` is reached, in
  ///   which case the caller calls again.
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
      if !segments.join(segment) {
        guard segments.count < segmentLimit else { return total }
        segments.append(segment)
      }
      buffers.advance(by: count)
      total &+= count
    }
    return total
  }

  /// Takes the last device-writable byte, which receives the status of a request.
  /// - Returns: the byte's address; nil if no bytes are left.
  public mutating func takeLastByte() throws(VirtQueueError) -> UInt64? {
    do { return try chain.writable.takeLastByte() } catch { throw .memory(error) }
  }

  /// Writes the byte that `takeLastByte` took.
  public func store(_ byte: UInt8, at address: UInt64) throws(VirtQueueError) {
    let bytes: InlineArray<1, UInt8> = [byte]
    do { try port.write(RawSpan(_elements: bytes.span), to: address) } catch { throw .memory(error) }
  }
}
