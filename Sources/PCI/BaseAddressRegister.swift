import Hardware

/// A base address register (BAR): PCI Express Base 7.5.1.2.1.
///
/// ```
/// memory  31 ............ 4 | 3 prefetchable | 2:1 type (00 32-bit, 10 64-bit) | 0
/// I/O     31 ............ 2 | 1 reserved     |                                 | 1
/// ```
/// A 64-bit BAR uses the next register for its upper half. The Expansion ROM Base Address register (7.5.1.2.4) has its
/// own layout:
/// ```
/// ROM     31 ........ 11 | 10:1 reserved | 0 enable
/// ```
public struct BaseAddressRegister: Hashable, Sendable {
  public enum Space: Hashable, Sendable {
    case memory32
    case memory64
    case io
    case expansionROM
  }

  /// The index that stands for the expansion ROM's register, which is not one of the six BARs.
  public static let expansionROMIndex = 6

  /// The register: 0 to 5, at most 4 for a 64-bit BAR, or `expansionROMIndex`.
  public let index: Int
  public let space: Space
  /// The size in bytes: a power of two, at least 16 for memory, 4 for I/O and 2048 for a ROM.
  public let size: UInt64
  public let prefetchable: Bool

  public init(index: Int, space: Space, size: UInt64, prefetchable: Bool = false) {
    precondition(size.nonzeroBitCount == 1 && size >= (space == .io ? 4 : 16), "a BAR's size is a power of two")
    precondition(
      space == .expansionROM
        ? index == Self.expansionROMIndex && (2048...1 << 24).contains(size)
        : index >= 0 && index + (space == .memory64 ? 1 : 0) <= 5, "a BAR index is 0 to 5, or that of the expansion ROM"
    )
    self.index = index
    self.space = space
    self.size = size
    self.prefetchable = prefetchable
  }

  public var offset: Int {
    space == .expansionROM ? StandardOffset.expansionROM : StandardOffset.baseAddressRegisters + 4 * index
  }

  /// The room that the BAR needs in a window. Memory BARs do not share pages.
  var room: UInt64 { space == .io ? size : max(size, 4096) }

  /// The read-only bits that encode the space.
  private var typeBits: UInt32 {
    switch space {
    case .memory32: prefetchable ? 0x8 : 0
    case .memory64: prefetchable ? 0xc : 0x4
    case .io: 0x1
    case .expansionROM: 0
    }
  }

  /// Defines the register. The bits below the size are read-only zero, so software that writes all ones reads the size.
  func define(in space: inout ConfigurationSpace) {
    let mask = ~(size - 1) | (self.space == .expansionROM ? 1 : 0)
    space.define(offset, typeBits, writable: UInt32(truncatingIfNeeded: mask))
    if self.space == .memory64 {
      space.define(offset + 4, UInt32(0), writable: UInt32(truncatingIfNeeded: mask >> 32))
    }
  }

  /// Returns the address at which the BAR decodes. Returns nil while decoding is off, while the BAR has no address, and
  /// while it is at the top of the space, where software puts it to determine its size.
  func base(in space: ConfigurationSpace) -> UInt64? {
    let command = Command(rawValue: space.get(UInt16.self, StandardOffset.command))
    guard command.contains(self.space == .io ? .ioSpaceEnable : .memorySpaceEnable) else { return nil }
    let value = space.get(UInt32.self, offset)
    if self.space == .expansionROM, !value[bit: 0] { return nil }
    var base = UInt64(value & (self.space == .io ? ~3 : ~0xf))
    let limit: UInt64
    switch self.space {
    case .io: limit = 0xffff
    case .memory32, .expansionROM: limit = 0xffff_ffff
    case .memory64:
      base |= UInt64(space.get(UInt32.self, offset + 4)) << 32
      limit = .max
    }
    let (last, overflow) = base.addingReportingOverflow(size - 1)
    guard base != 0, !overflow, last < limit || (self.space == .io && last == limit) else { return nil }
    return base
  }

  func place(at base: UInt64, in space: inout ConfigurationSpace) {
    space.write(offset, .doubleword, base & 0xffff_ffff)
    if self.space == .memory64 { space.write(offset + 4, .doubleword, base >> 32) }
  }
}
