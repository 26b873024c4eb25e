/// The guest's physical memory map. All boot protocols pass the same map to the kernel.
///
/// The first MiB is that of a PC: RAM up to the extended BIOS data area, then the VGA hole, then the range of the BIOS
/// ROM, in which Nestling puts the ACPI tables, because Linux searches it for the root pointer.
struct GuestMemoryLayout: Hashable, Sendable {
  /// The end of the RAM that starts at 0; at most 4 GiB.
  var lowRAMEnd: UInt64
  /// The end of the RAM that starts at 4 GiB; nil if there is none.
  var highRAMEnd: UInt64?
  /// The range of the enhanced configuration access mechanism (ECAM, in the MCFG table).
  var configurationRange = ACPIPlatform.configurationRange
  /// The range of the ACPI tables.
  var tablesRange = ACPIPlatform.tablesRange

  /// Address range types (ACPI 6.5, section 15.1); hvm_memmap and Multiboot use the same numbers.
  enum RegionType: UInt32, Sendable {
    case memory = 1
    case reserved = 2
  }

  struct Region: Hashable, Sendable {
    var range: Range<UInt64>
    var type: RegionType
  }

  static let fourGiB: UInt64 = 1 << 32
  static let firstMiB: UInt64 = 1 << 20
  /// The end of a PC's conventional memory, 639 KiB. The next KiB is the extended BIOS data area.
  static let conventionalEnd: UInt64 = 0x9_fc00
  static let videoHole: UInt64 = 0xa_0000

  /// The regions in the order of their addresses, without overlaps (the map that INT 15h E820h returns on a PC).
  var regions: [Region] {
    var regions: [Region] = []
    func add(_ start: UInt64, _ end: UInt64, _ type: RegionType) {
      if start < end { regions.append(Region(range: start..<end, type: type)) }
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
