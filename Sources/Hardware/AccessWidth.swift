/// How many bytes one register access moves. A bus offers no others.
public enum AccessWidth: Int, Sendable, CaseIterable {
  case byte = 1
  case word = 2
  case doubleword = 4
  case quadword = 8

  /// The value of an access that nothing answers: all ones, as on PCI.
  @inlinable
  public var allOnes: UInt64 { .lowBits(rawValue * 8) }
}
