/// The number of bytes that one register access moves. A bus carries no other widths.
public enum AccessWidth: Int, Sendable, CaseIterable {
  case byte = 1
  case word = 2
  case doubleword = 4
  case quadword = 8

  /// All bits of this width set: a mask, and the value of a read that no device answers, as on PCI.
  @inlinable
  public var allOnes: UInt64 { .lowBits(rawValue * 8) }
}
