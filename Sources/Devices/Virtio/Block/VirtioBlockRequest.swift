import Hardware

/// The requests of a disk: virtio 1.2, section 5.2.6. A request is a header of 16 bytes (type, reserved, sector), data
/// in one direction, and a status byte at the end.
extension VirtioBlock {
  private static let headerSize = 16
  /// struct virtio_blk_discard_write_zeroes: sector (8), number of sectors (4), flags (4).
  private static let rangeSize = 16
  /// The most bytes that one call of the backend moves, so that a reset does not wait for a whole request of up to 4
  /// GiB.
  private static let pieceSize: UInt64 = 4 << 20

  /// VIRTIO_BLK_T_*
  private enum RequestType {
    static let read: UInt32 = 0
    static let write: UInt32 = 1
    static let flush: UInt32 = 4
    static let getID: UInt32 = 8
    static let discard: UInt32 = 11
    static let writeZeroes: UInt32 = 13
  }

  /// VIRTIO_BLK_S_*
  private enum Status: UInt8 {
    case ok = 0
    case ioError = 1
    case unsupported = 2
  }

  /// The reason why a request failed, which determines the guest's status.
  private enum Failure: Error {
    case backend(BlockError)
    case memory(DMAError)
    /// The range is not on the disk, or does not consist of whole blocks.
    case range
    case unsupported
    /// The queue is being stopped, and the request is dropped.
    case stopped

    var status: Status? {
      switch self {
      case .backend(.unsupported), .unsupported: .unsupported
      case .backend, .memory, .range: .ioError
      case .stopped: nil
      }
    }
  }

  /// Serves the chain that `queue.next` took last. If Bus Master Enable is clear before the end, the queue calls this
  /// again later. A repeated write, discard or flush is harmless: the driver has not seen the request complete, so it
  /// does not rely on the order of this request and another one.
  func serve(_ queue: inout VirtQueue) throws(VirtQueueError) {
    let head = queue.chain.head
    guard let statusAddress = try queue.takeLastByte() else { throw .request }
    let header: Int
    do { header = try queue.takeBytes(Self.headerSize) } catch { throw .memory(error) }
    guard header == Self.headerSize else { throw .request }
    let type = queue.bytes.load(UInt32.self, at: 0)
    let sector = queue.bytes.load(UInt64.self, at: 8)

    let room = queue.chain.writable.remaining
    var status = Status.ok
    var written: UInt64 = 0
    do throws(Failure) {
      try perform(type, sector, &queue, written: &written)
    } catch {
      if case .memory(.disabled) = error { throw .memory(.disabled) }
      guard let failed = error.status else { return }
      status = failed
    }
    try queue.store(status.rawValue, at: statusAddress)
    // The length counts bytes without a gap from the first device-writable byte on (2.7.8.2). So it includes the status
    // only if all bytes before it were written.
    if written == room { written &+= 1 }
    try queue.complete(head: head, written: UInt32(truncatingIfNeeded: written))
  }

  /// - Parameter written: receives the number of data bytes that were written, from the first device-writable byte on;
  ///   also after a failure.
  private func perform(
    _ type: UInt32, _ sector: UInt64, _ queue: inout VirtQueue, written: inout UInt64
  ) throws(Failure) {
    switch type {
    case RequestType.read:
      let start = try range(sector, bytes: queue.chain.writable.remaining).lowerBound
      while queue.chain.writable.remaining > 0 {
        // If a piece fails, any part of it may have been written. So `written` excludes that piece.
        written &+= try transfer(.write, &queue) { segments throws(BlockError) in
          try backend.read(at: start &+ written, into: segments)
        }
      }
    case RequestType.write:
      guard !backend.isReadOnly else { throw .backend(.readOnly) }
      var offset = try range(sector, bytes: queue.chain.readable.remaining).lowerBound
      while queue.chain.readable.remaining > 0 {
        offset &+= try transfer(.read, &queue) { segments throws(BlockError) in
          try backend.write(at: offset, from: segments)
        }
      }
      try settle(queue)
    case RequestType.flush:
      try call { () throws(BlockError) in try backend.flush() }
    case RequestType.getID:
      let room = queue.chain.writable.remaining
      defer { written = room &- queue.chain.writable.remaining }
      do { _ = try queue.put(serial) } catch { throw .memory(error) }
    case RequestType.discard where queue.features.contains(.blockDiscard):
      try forEachRange(&queue, limit: Self.discardLimit, flags: 0) { range, _ throws(BlockError) in
        try backend.discard(range)
      }
      try settle(queue)
    case RequestType.writeZeroes where queue.features.contains(.blockWriteZeroes):
      // Flag bit 0: unmap.
      try forEachRange(&queue, limit: Self.writeZeroesLimit, flags: 1) { range, flags throws(BlockError) in
        try backend.writeZeroes(range, mayUnmap: flags[bit: 0])
      }
      try settle(queue)
    default:
      throw .unsupported
    }
  }

  /// Moves the next piece of the data.
  /// - Returns: the piece's size in bytes.
  private func transfer(
    _ access: DMAAccess, _ queue: inout VirtQueue, _ body: ([PhysicalSegment]) throws(BlockError) -> Void
  ) throws(Failure) -> UInt64 {
    guard queue.isRunning else { throw .stopped }
    // Keep the request in flight until the file transfer ends: the guest may reuse the segments after that.
    let request = queue.port.request()
    let taken: UInt64
    do {
      taken = try queue.takeSegments(for: access, limit: Self.pieceSize, during: request)
    } catch { throw .memory(error) }
    guard taken > 0 else { throw .memory(.notMemory) }
    let segments = queue.segments
    try call { () throws(BlockError) in try body(segments) }
    request.end()
    return taken
  }

  private func call(_ body: () throws(BlockError) -> Void) throws(Failure) {
    do { try body() } catch { throw .backend(error) }
  }

  /// Flushes after a write if the driver did not negotiate flushes: its disk is write-through (5.2.6.2).
  private func settle(_ queue: VirtQueue) throws(Failure) {
    if !queue.features.contains(.blockFlush) { try call { () throws(BlockError) in try backend.flush() } }
  }

  /// Returns the byte range of sectors. Throws unless they are on the disk and form whole logical blocks.
  private func range(_ sector: UInt64, bytes: UInt64) throws(Failure) -> Range<UInt64> {
    let blockMask = UInt64(options.logicalBlockSize) - 1
    let capacity = capacity
    guard bytes & blockMask == 0, sector <= capacity, bytes / Self.sectorSize <= capacity - sector else {
      throw .range
    }
    // No overflow, because the capacity in bytes fits.
    let start = sector * Self.sectorSize
    guard start & blockMask == 0 else { throw .range }
    return start..<start + bytes
  }

  /// Checks all ranges of a discard or write-zeroes request, and then calls `body` for each.
  /// - Parameters:
  ///   - limit: the most sectors in one range.
  ///   - flags: the flags that the request type supports.
  private func forEachRange(
    _ queue: inout VirtQueue, limit: UInt32, flags: UInt32,
    _ body: (Range<UInt64>, UInt32) throws(BlockError) -> Void
  ) throws(Failure) {
    guard !backend.isReadOnly else { throw .backend(.readOnly) }
    let size = queue.chain.readable.remaining
    guard size > 0, size % UInt64(Self.rangeSize) == 0, size / UInt64(Self.rangeSize) <= UInt64(Self.rangeLimit)
    else { throw .range }
    let count: Int
    do { count = try queue.takeBytes(Int(size)) } catch { throw .memory(error) }
    for at in stride(from: 0, to: count, by: Self.rangeSize) {
      let sectors = queue.bytes.load(UInt32.self, at: at + 8)
      guard queue.bytes.load(UInt32.self, at: at + 12) & ~flags == 0 else { throw .unsupported }
      guard sectors <= limit else { throw .range }
      _ = try range(queue.bytes, at: at)
    }
    for at in stride(from: 0, to: count, by: Self.rangeSize) {
      guard queue.isRunning else { throw .stopped }
      let range = try range(queue.bytes, at: at)
      let flags = queue.bytes.load(UInt32.self, at: at + 12)
      if !range.isEmpty { try call { () throws(BlockError) in try body(range, flags) } }
    }
  }

  private func range(_ bytes: [UInt8], at offset: Int) throws(Failure) -> Range<UInt64> {
    let sectors = bytes.load(UInt32.self, at: offset + 8)
    return try range(bytes.load(UInt64.self, at: offset), bytes: UInt64(sectors) * Self.sectorSize)
  }
}
