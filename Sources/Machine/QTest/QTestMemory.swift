import Hardware
import Linux

/// The memory that a qtest client accesses in place of a CPU: RAM, and, at other addresses, the devices on the memory
/// bus. Accesses on the bus are naturally aligned and at most 8 bytes wide.
struct QTestMemory {
  let board: Board

  private enum Access {
    /// An access to RAM, with its length in bytes.
    case memory(Int)
    case bus(AccessWidth)
  }

  /// Returns the longest possible next access.
  private func nextAccess(at address: UInt64, _ remaining: Int) -> Access {
    for region in board.memory.regions where address >= region.address && address - region.address < region.size {
      return .memory(Int(min(UInt64(remaining), region.size - (address - region.address))))
    }
    var width = AccessWidth.quadword
    while width.rawValue > remaining || address & UInt64(width.rawValue - 1) != 0 {
      width = AccessWidth(rawValue: width.rawValue / 2) ?? .byte
    }
    return .bus(width)
  }

  func read(_ address: UInt64, count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let at = address &+ UInt64(done)
      switch nextAccess(at: at, count - done) {
      case .memory(let length):
        var span = bytes.mutableSpan
        var whole = MutableRawSpan(_elements: &span)
        var part = whole._mutatingExtracting(done..<done + length)
        _ = board.memory.read(from: at, into: &part)
        done += length
      case .bus(let width):
        let value = board.readMemory(at, width.rawValue)
        for index in 0..<width.rawValue { bytes[done + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
        done += width.rawValue
      }
    }
    return bytes
  }

  func write(_ bytes: [UInt8], to address: UInt64) {
    var done = 0
    while done < bytes.count {
      let at = address &+ UInt64(done)
      switch nextAccess(at: at, bytes.count - done) {
      case .memory(let length):
        _ = board.memory.write(RawSpan(_elements: bytes.span).extracting(done..<done + length), to: at)
        done += length
      case .bus(let width):
        var value: UInt64 = 0
        for index in 0..<width.rawValue { value |= UInt64(bytes[done + index]) << (8 * index) }
        board.writeMemory(at, width.rawValue, value)
        done += width.rawValue
      }
    }
  }
}
