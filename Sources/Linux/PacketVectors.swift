import Glibc

extension GuestMemory {
  /// The most segments of a packet: with the header they fit one call (UIO_MAXIOV).
  public static let packetSegmentLimit = 1023

  /// Calls a function with the host's addresses of a packet: a header, then segments of guest memory.
  /// - Parameters:
  ///   - count: the number of segments.
  ///   - segment: returns a segment. It may come from the guest: EFAULT is thrown unless all of them are RAM.
  ///   - name: the system call, for errors.
  func withPacket<Answer>(
    _ header: UnsafeRawBufferPointer, _ count: Int, _ segment: (Int) -> ScatteredFile.Segment, _ name: String,
    _ call: (UnsafeMutableBufferPointer<iovec>) throws(SystemError) -> Answer
  ) throws(SystemError) -> Answer {
    guard count <= Self.packetSegmentLimit else { throw SystemError(name, code: EMSGSIZE) }
    // SAFETY: each pointer is checked to cover its segment; the caller's header and the list outlive the call.
    return try unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: count + 1) {
      list throws(SystemError) -> Answer in
      unsafe list[0] = unsafe iovec(
        iov_base: UnsafeMutableRawPointer(mutating: header.baseAddress), iov_len: header.count)
      for index in 0..<count {
        let segment = segment(index)
        guard let base = unsafe pointer(segment.address, UInt64(bitPattern: Int64(segment.count))) else {
          throw SystemError(name, "guest memory", code: EFAULT)
        }
        unsafe list[index + 1] = unsafe iovec(iov_base: base, iov_len: segment.count)
      }
      return try unsafe call(list)
    }
  }
}
