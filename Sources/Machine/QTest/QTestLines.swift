/// Splits a client's bytes into lines. A line that is too long is skipped up to its end, and returned as `.tooLong`.
struct QTestLines {
  enum Piece: Equatable {
    case line(ArraySlice<UInt8>)
    /// A line that is longer than the limit.
    case tooLong
  }

  private let limit: Int
  private var buffer: [UInt8] = []
  /// The index at which the next line starts.
  private var start = 0
  /// The index up to which there is no newline in the next line.
  private var searched = 0
  private var isSkipping = false

  /// - Parameter limit: bytes of the longest line, without its newline.
  init(limit: Int) { self.limit = limit }

  mutating func append(_ bytes: some Sequence<UInt8>) {
    if start > 0 {
      buffer.removeFirst(start)
      searched -= start
      start = 0
    }
    buffer += bytes
  }

  /// Returns the next line; nil until the whole line is there.
  mutating func next() -> Piece? {
    guard let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) else {
      searched = buffer.count
      if searched - start > limit {
        isSkipping = true
        start = searched
      }
      return nil
    }
    let line = buffer[start..<end]
    let isTooLong = isSkipping || line.count > limit
    start = end + 1
    searched = start
    isSkipping = false
    return isTooLong ? .tooLong : .line(line)
  }
}
