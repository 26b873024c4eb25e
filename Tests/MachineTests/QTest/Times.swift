import Synchronization

/// Times that handlers record.
final class Times: Sendable {
  private let list = Mutex<[UInt64]>([])

  var all: [UInt64] { list.withLock { $0 } }
  func add(_ time: UInt64) { list.withLock { $0.append(time) } }
}
