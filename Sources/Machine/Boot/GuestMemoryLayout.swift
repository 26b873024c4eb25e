/// The guest's physical memory as a kernel is told of it: one list, whatever the boot protocol.
///
/// The first mebibyte is a PC's: RAM up to an extended BIOS data area, the VGA hole, then read-only
/// memory in whose place the ACPI tables lie (Linux looks for the root pointer there by itself).
public struct GuestMemoryLayout: Hashable, Sendable {
  /// RAM is `0..<lowRAMEnd`; at most 4 GiB.
  public var lowRAMEnd: UInt64
  /// RAM also is `4 GiB..<highRAMEnd`; nil when all of it is low.
  public var highRAMEnd: UInt64?
  /// The enhanced configuration access mechanism's range (MCFG).
  public var configurationRange: Range<UInt64>
  /// Where the ACPI tables are.
  public var tablesRange: Range<UInt64>

  public init(
    lowRAMEnd: UInt64, highRAMEnd: UInt64? = nil,
    configurationRange: Range<UInt64> = ACPIPlatform.configurationRange,
    tablesRange: Range<UInt64> = ACPIPlatform.tablesRange
  ) {
    self.lowRAMEnd = lowRAMEnd
    self.highRAMEnd = highRAMEnd
    self.configurationRange = configurationRange
    self.tablesRange = tablesRange
  }

  /// Address range types (ACPI 6.5, 15.1); hvm_memmap and Multiboot use the same numbers.
  public enum RegionKind: UInt32, Sendable {
    case memory = 1
    case reserved = 2
  }

  public struct Region: Hashable, Sendable {
    public var range: Range<UInt64>
    public var kind: RegionKind
  }

  static let fourGiB: UInt64 = 1 << 32
  static let firstMiB: UInt64 = 1 << 20
  /// Where a PC's conventional memory ends: 639 KiB, the last one being the extended BIOS data area's.
  static let conventionalEnd: UInt64 = 0x9_fc00
  static let videoHole: UInt64 = 0xa_0000

  /// The map in order of address, without overlaps (INT 15h E820h's answer).
  public var regions: [Region] {
    var regions: [Region] = []
    func add(_ start: UInt64, _ end: UInt64, _ kind: RegionKind) {
      if start < end { regions.append(Region(range: start..<end, kind: kind)) }
    }
    add(0, min(lowRAMEnd, Self.conventionalEnd), .memory)
    add(Self.conventionalEnd, Self.videoHole, .reserved)
    add(tablesRange.lowerBound, tablesRange.upperBound, .reserved)
    add(Self.firstMiB, lowRAMEnd, .memory)
    add(configurationRange.lowerBound, configurationRange.upperBound, .reserved)
    if let highRAMEnd { add(Self.fourGiB, highRAMEnd, .memory) }
    return regions
  }
}
