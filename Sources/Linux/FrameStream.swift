import Glibc
import Synchronization

/// A connected stream socket that carries Ethernet frames, each after its length in bytes (32 bits, big-endian), as
/// QEMU's `-netdev stream` does (net/net.c, net_fill_rstate). Frames are sent directly from guest memory.
///
/// No call waits. One thread may send while another receives.
///
/// Lock order: `output` and `input` are leaves. They are held during non-blocking system calls.
public final class FrameStream: Sendable {
  private struct Output {
    /// The bytes of a frame that the socket had no room for, from `done` on.
    var rest: [UInt8] = []
    var done = 0

    var isEmpty: Bool { done == rest.count }
  }

  private struct Input {
    /// Received bytes are in `start..<end`. Has room for two frames.
    var bytes: [UInt8]
    var start = 0
    var end = 0
  }

  private static let lengthSize = 4
  private let socket: FileDescriptor
  private let longestFrame: Int
  private let output = Mutex(Output())
  private let input: Mutex<Input>

  /// - Parameter longestFrame: the most bytes of a frame that is received.
  public init(_ socket: consuming FileDescriptor, longestFrame: Int) {
    var yes: Int32 = 1
    // SAFETY: TCP_NODELAY takes an int. A Unix socket refuses it and needs none.
    unsafe setsockopt(socket.rawValue, Int32(IPPROTO_TCP), TCP_NODELAY, &yes, socklen_t(MemoryLayout<Int32>.size))
    self.socket = socket
    self.longestFrame = longestFrame
    input = Mutex(Input(bytes: [UInt8](repeating: 0, count: 2 * (Self.lengthSize + longestFrame))))
  }

  /// For the registration with a loop.
  public var rawValue: Int32 { socket.rawValue }

  // MARK: Sending

  /// Sends a frame. Once its first bytes are sent, the rest waits here for `flush`.
  /// - Parameters:
  ///   - count: the number of segments, at most `GuestMemory.packetSegmentLimit`.
  ///   - segment: returns a segment of the frame. It may come from the guest: EFAULT is thrown unless all are RAM.
  /// - Returns: false if the frame cannot be sent now: an earlier frame waits, or the socket has no room.
  public func send(
    _ count: Int, of memory: GuestMemory, segment: (Int) -> ScatteredFile.Segment
  ) throws(SystemError) -> Bool {
    try output.withLock { output throws(SystemError) in
      guard try flush(&output) else { return false }
      var total = 0
      for index in 0..<count { total &+= segment(index).count }
      guard var length = UInt32(exactly: total)?.bigEndian else { throw SystemError("sendmsg", code: EMSGSIZE) }
      // SAFETY: the length lives until the call returns.
      return try unsafe withUnsafeBytes(of: &length) { length throws(SystemError) -> Bool in
        try unsafe memory.withPacket(length, count, segment, "sendmsg") { list throws(SystemError) -> Bool in
          let sent = try unsafe transmit(list)
          if sent > 0 { unsafe Self.keep(list, from: sent, in: &output) }
          return sent > 0
        }
      }
    }
  }

  /// - Returns: the number of bytes sent; 0 if the socket has no room.
  private func transmit(_ list: UnsafeMutableBufferPointer<iovec>) throws(SystemError) -> Int {
    var message = unsafe msghdr()
    unsafe message.msg_iov = list.baseAddress
    unsafe message.msg_iovlen = list.count
    while true {
      // SAFETY: the message refers to the caller's list.
      let sent = unsafe sendmsg(socket.rawValue, &message, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
      if sent >= 0 { return sent }
      if errno == EAGAIN { return 0 }
      if errno != EINTR { throw SystemError("sendmsg", code: errno) }
    }
  }

  /// Copies the bytes of a list that were not sent.
  private static func keep(_ list: UnsafeMutableBufferPointer<iovec>, from sent: Int, in output: inout Output) {
    var skipped = sent
    output.rest.removeAll(keepingCapacity: true)
    output.done = 0
    for index in 0..<list.count {
      // SAFETY: the caller has checked that each entry covers its bytes.
      let part = unsafe UnsafeRawBufferPointer(start: list[index].iov_base, count: list[index].iov_len)
      if skipped < part.count { unsafe output.rest.append(contentsOf: part.dropFirst(skipped)) }
      skipped = max(0, skipped - part.count)
    }
  }

  /// Whether a part of a frame waits for room.
  public var hasRest: Bool { output.withLock { !$0.isEmpty } }

  /// Sends the rest of a frame.
  /// - Returns: false if the socket has no room for all of it.
  public func flush() throws(SystemError) -> Bool {
    try output.withLock { output throws(SystemError) in try flush(&output) }
  }

  private func flush(_ output: inout Output) throws(SystemError) -> Bool {
    while !output.isEmpty {
      let done = output.done
      // SAFETY: the range is the part of the array that was not sent.
      let sent = unsafe output.rest.withUnsafeBytes {
        unsafe Glibc.send(
          socket.rawValue, $0.baseAddress! + done, $0.count - done, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
      }
      if sent >= 0 {
        output.done += sent
      } else if errno == EAGAIN {
        return false
      } else if errno != EINTR {
        throw SystemError("send", code: errno)
      }
    }
    return true
  }

  // MARK: Receiving

  /// Takes the next frame.
  /// - Parameters:
  ///   - target: gets the frame from `offset` on. It must have room for the longest frame.
  /// - Returns: the number of bytes; nil if no whole frame has arrived yet. At the stream's end ECONNRESET is thrown,
  ///   for a frame that is too long EMSGSIZE.
  public func receive(into target: inout MutableRawSpan, at offset: Int) throws(SystemError) -> Int? {
    try input.withLock { input throws(SystemError) -> Int? in
      while true {
        if let count = try Self.takeFrame(from: &input, into: &target, at: offset, longestFrame) { return count }
        guard try fill(&input) else { return nil }
      }
    }
  }

  private static func takeFrame(
    from input: inout Input, into target: inout MutableRawSpan, at offset: Int, _ longest: Int
  ) throws(SystemError) -> Int? {
    guard input.end - input.start >= lengthSize else { return nil }
    let count = input.bytes[input.start..<input.start + lengthSize].reduce(0) { $0 << 8 | Int($1) }
    guard count <= longest, count <= target.byteCount - offset else {
      throw SystemError("recv", "a frame of \(count) bytes", code: EMSGSIZE)
    }
    guard input.end - input.start >= lengthSize + count else { return nil }
    let from = input.start + lengthSize
    // SAFETY: both ranges are checked above; the source lies within `start..<end`.
    unsafe target.withUnsafeMutableBytes { target in
      unsafe input.bytes.withUnsafeBytes { source in
        if count > 0 { unsafe memcpy(target.baseAddress! + offset, source.baseAddress! + from, count) }
      }
    }
    input.start = from + count
    return count
  }

  /// Reads more bytes, which may be less than the rest of a frame.
  /// - Returns: false if the socket has none.
  private func fill(_ input: inout Input) throws(SystemError) -> Bool {
    if input.start == input.end {
      input.start = 0
      input.end = 0
    } else if input.bytes.count - input.start < Self.lengthSize + longestFrame {
      let (start, count) = (input.start, input.end - input.start)
      // SAFETY: the range lies within the array.
      unsafe input.bytes.withUnsafeMutableBytes {
        _ = unsafe memmove($0.baseAddress!, $0.baseAddress! + start, count)
      }
      input.start = 0
      input.end = count
    }
    while true {
      let end = input.end
      // SAFETY: the range is the free end of the array, which is not empty: the bytes are less than a frame.
      let count = unsafe input.bytes.withUnsafeMutableBytes {
        unsafe recv(socket.rawValue, $0.baseAddress! + end, $0.count - end, Int32(MSG_DONTWAIT))
      }
      if count > 0 {
        input.end += count
        return true
      }
      if count == 0 { throw SystemError("recv", code: ECONNRESET) }
      if errno == EAGAIN { return false }
      if errno != EINTR { throw SystemError("recv", code: errno) }
    }
  }
}
