import Devices
import Hardware
import Synchronization
import TestSupport

/// A disk of a few sectors in an array. Its caller must check ranges, so a trap here is a finding.
final class FuzzDisk: BlockBackend {
  private let memory: HeapMemory
  private let content = Mutex([UInt8](repeating: 0x5a, count: 40 * 512))
  let isReadOnly: Bool

  init(memory: HeapMemory, isReadOnly: Bool) {
    self.memory = memory
    self.isReadOnly = isReadOnly
  }

  var size: UInt64 { UInt64(content.withLock { $0.count }) }

  func read(at offset: UInt64, into segments: [PhysicalSegment]) throws(BlockError) {
    var at = Int(offset)
    for segment in segments {
      let part = content.withLock { Array($0[at..<at + segment.count]) }
      guard memory.store(part, at: segment.address) else { throw .inputOutput }
      at += segment.count
    }
  }

  func write(at offset: UInt64, from segments: [PhysicalSegment]) throws(BlockError) {
    var at = Int(offset)
    for segment in segments {
      guard let part = memory.copy(segment.address, count: segment.count) else { throw .inputOutput }
      content.withLock { $0.replaceSubrange(at..<at + segment.count, with: part) }
      at += segment.count
    }
  }

  func flush() throws(BlockError) {}
  func discard(_ range: Range<UInt64>) throws(BlockError) { try writeZeroes(range, mayUnmap: true) }
  func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(BlockError) {
    content.withLock { content in
      for index in Int(range.lowerBound)..<Int(range.upperBound) { content[index] = 0 }
    }
  }
}

/// Constant bytes, so that an input always has the same effect.
final class FuzzEntropy: EntropySource {
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int {
    for index in 0..<count { bytes[index] = 0x77 }
    return count
  }

  func onReady(_ handler: @escaping @Sendable () -> Void) {}
}
