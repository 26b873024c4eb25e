import Glibc

/// Packets of a device whose header is not in guest memory.
extension TapInterface {
  /// Reads one frame with its header. What does not fit is lost.
  /// - Returns: the number of bytes; nil if no frame waits.
  public func read(into packet: inout MutableRawSpan) throws(SystemError) -> Int? {
    while true {
      // SAFETY: the kernel writes at most the span's bytes.
      let count = unsafe packet.withUnsafeMutableBytes { bytes in
        let count = unsafe Glibc.read(rawValue, bytes.baseAddress, bytes.count)
        return count < 0 ? -Int(errno) : count
      }
      if count >= 0 { return count }
      if count == -Int(EAGAIN) { return nil }
      if count != -Int(EINTR) { throw SystemError("read", name, code: Int32(-count)) }
    }
  }

  /// Writes one frame from guest memory, after its header. The kernel checks the header.
  /// - Parameters:
  ///   - count: the number of segments, at most `GuestMemory.packetSegmentLimit`.
  ///   - segment: returns a segment of the frame. It may come from the guest.
  /// - Returns: false if the host's network has no room now. EINVAL is thrown for a bad header or a frame that is too
  ///   short, EIO for an interface that is down.
  public func write(
    _ header: InlineArray<12, UInt8>, _ count: Int, of memory: GuestMemory, segment: (Int) -> ScatteredFile.Segment
  ) throws(SystemError) -> Bool {
    let descriptor = rawValue
    let name = name
    var header = header
    // SAFETY: the header lives until the call returns.
    return try unsafe withUnsafeBytes(of: &header) { header throws(SystemError) -> Bool in
      try unsafe memory.withPacket(header, count, segment, "writev") { list throws(SystemError) -> Bool in
        while true {
          if unsafe writev(descriptor, list.baseAddress, Int32(list.count)) >= 0 { return true }
          if errno == EAGAIN { return false }
          if errno != EINTR { throw SystemError("writev", name, code: errno) }
        }
      }
    }
  }
}
