/// Cuts what a client sends into lines. What is too long for one is passed over up to its end, and told.
struct QTestLines {
  enum Piece: Equatable {
    case line(ArraySlice<UInt8>)
    /// A line that was longer than the limit.
    case tooLong
  }

  private let limit: Int
  private var buffer: [UInt8] = []
  /// Where the next line starts, and up to where there is no newline.
  private var start = 0
  private var searched = 0
  private var skips = false

  /// - Parameter limit: bytes of a line, its newline not counted.
  init(limit: Int) { self.limit = limit }

  mutating func append(_ bytes: some Sequence<UInt8>) {
    if start > 0 {
      buffer.removeFirst(start)
      searched -= start
      start = 0
    }
    buffer += bytes
  }

  /// nil until there is a whole line.
  mutating func next() -> Piece? {
    guard let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) else {
      searched = buffer.count
      if searched - start > limit {
        skips = true
        start = searched
      }
      return nil
    }
    let line = buffer[start..<end]
    let wasTooLong = skips || line.count > limit
    start = end + 1
    searched = start
    skips = false
    return wasTooLong ? .tooLong : .line(line)
  }
}
