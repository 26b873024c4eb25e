import Devices
import Hardware
import Synchronization
import TestSupport

/// A disk in an array that records its operations.
final class MemoryBackend: BlockBackend {
  enum Operation: Equatable {
    case read(UInt64, [PhysicalSegment])
    case write(UInt64, [PhysicalSegment])
    case flush
    case discard(Range<UInt64>)
    case writeZeroes(Range<UInt64>, mayUnmap: Bool)
  }

  let memory: HeapMemory
  let isReadOnly: Bool
  private let content: Mutex<[UInt8]>
  private let log = Mutex<[Operation]>([])
  private let failure = Mutex<BlockError?>(nil)
  private let beforeRead = Mutex<(@Sendable () -> Void)?>(nil)

  init(memory: HeapMemory, content: [UInt8], isReadOnly: Bool = false) {
    self.memory = memory
    self.content = Mutex(content)
    self.isReadOnly = isReadOnly
  }

  var size: UInt64 { UInt64(content.withLock { $0.count }) }
  var bytes: [UInt8] { content.withLock { $0 } }
  var operations: [Operation] { log.withLock { $0 } }

  func resize(to size: Int) {
    content.withLock { content in
      content.removeLast(max(0, content.count - size))
      content.append(contentsOf: repeatElement(0, count: size - content.count))
    }
  }

  /// Makes all later operations fail with this error, or none if it is nil.
  func fail(with error: BlockError?) { failure.withLock { $0 = error } }
  /// Runs in each read, before any data moves.
  func onRead(_ body: (@Sendable () -> Void)?) { beforeRead.withLock { $0 = body } }

  private func start(_ operation: Operation) throws(BlockError) {
    log.withLock { $0.append(operation) }
    if let error = failure.withLock({ $0 }) { throw error }
  }

  func read(at offset: UInt64, into segments: [PhysicalSegment]) throws(BlockError) {
    beforeRead.withLock { $0 }?()
    try start(.read(offset, segments))
    var at = Int(offset)
    for segment in segments {
      let part = content.withLock { Array($0[at..<at + segment.count]) }
      guard memory.store(part, at: segment.address) else { throw .inputOutput }
      at += segment.count
    }
  }

  func write(at offset: UInt64, from segments: [PhysicalSegment]) throws(BlockError) {
    try start(.write(offset, segments))
    var at = Int(offset)
    for segment in segments {
      guard let part = memory.copy(segment.address, count: segment.count) else { throw .inputOutput }
      content.withLock { $0.replaceSubrange(at..<at + segment.count, with: part) }
      at += segment.count
    }
  }

  func flush() throws(BlockError) { try start(.flush) }
  func discard(_ range: Range<UInt64>) throws(BlockError) { try start(.discard(range)) }

  func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(BlockError) {
    try start(.writeZeroes(range, mayUnmap: mayUnmap))
    content.withLock { content in
      for index in range { content[Int(index)] = 0 }
    }
  }
}
