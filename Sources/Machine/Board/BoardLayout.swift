import Hardware
import PCI

/// Where everything is on the board: q35's map, so that kernels and people find what they expect.
public struct BoardLayout: Hashable, Sendable {
  // MARK: Memory

  static let configurationAccess: UInt64 = 0xb000_0000
  static let memory32Window: Range<UInt64> = 0xc000_0000..<0xfec0_0000
  static let ioapic: UInt64 = 0xfec0_0000
  /// What a CPU's own local APIC answers, and messages go to.
  static let localInterrupts: Range<UInt64> = 0xfee0_0000..<0xfef0_0000
  /// The first unit's page of registers; the others' follow.
  static let remappingUnit: UInt64 = 0xfed9_0000
  static let remappingUnitLimit = 16
  static let acpiTables: Range<UInt64> = 0xe_0000..<0x10_0000

  // MARK: I/O ports

  static let clock: UInt64 = 0x70
  static let serialPort: UInt64 = 0x3f8
  static let firmwareConfiguration: UInt64 = 0x510
  static let powerManagement: UInt64 = 0x600
  static let hotplugController: UInt64 = 0xcc0
  static let configurationPorts: UInt64 = 0xcf8
  static let ioWindow: Range<UInt64> = 0x1000..<0x1_0000

  // MARK: Interrupts

  static let serialPin = 4
  static let systemControlPin = 9
  /// The source-id under which the IOAPIC's requests are remapped: bus 0xff, device 0, function 0.
  static let ioapicRequester = RequesterID(bus: 0xff, device: 0, function: 0)

  /// The pin of the IOAPIC that a function's INTx is wired to, as the DSDT's _PRT has it.
  /// - Parameter interruptPin: 1 for INTA# to 4 for INTD#.
  static func pin(of function: RequesterID, interruptPin: UInt8) -> Int {
    16 + (Int(function.device) + Int(interruptPin) - 1) & 7
  }

  /// As `pin(of:interruptPin:)`. Below a port the pins are swizzled by the device's number onto the port's own (PCI-to-PCI
  /// Bridge Architecture 1.2, 9.1).
  static func pin(of place: PCIPlace, interruptPin: UInt8) -> Int {
    guard let port = place.port else { return pin(of: place.address, interruptPin: interruptPin) }
    return pin(of: port, interruptPin: (interruptPin &- 1 &+ place.device) & 3 + 1)
  }

  // MARK: What depends on the machine

  /// RAM that lies below 4 GiB, in bytes. q35 leaves the upper half to devices once there is much of it.
  public let lowMemorySize: UInt64
  /// RAM from 4 GiB on, in bytes.
  public let highMemorySize: UInt64
  /// For BARs that find no room below 4 GiB: the top of the guest's address space.
  public let memory64Window: Range<UInt64>

  /// - Parameter physicalAddressWidth: bits of a guest physical address.
  /// - Returns: nil where RAM and the window do not both fit.
  public init?(memorySize: UInt64, physicalAddressWidth: Int) {
    let lowLimit = Self.lowMemoryLimit(memorySize: memorySize)
    lowMemorySize = min(memorySize, lowLimit)
    highMemorySize = memorySize - lowMemorySize
    let width = min(max(physicalAddressWidth, 33), 52)
    let end: UInt64 = 1 << width
    let size = min(end / 4, 1 << 39)
    memory64Window = end - size..<end
    let room = memory64Window.lowerBound
    guard room >= 1 << 32, highMemorySize <= room - (1 << 32) else { return nil }
  }

  public static func lowMemoryLimit(memorySize: UInt64) -> UInt64 {
    memorySize > configurationAccess ? 0x8000_0000 : configurationAccess
  }

  var windows: ResourcePlacement.Windows {
    ResourcePlacement.Windows(
      io: Self.ioWindow, memory32: Self.memory32Window, memory64: memory64Window)
  }

  var memoryLayout: GuestMemoryLayout {
    GuestMemoryLayout(
      lowRAMEnd: lowMemorySize, highRAMEnd: highMemorySize > 0 ? (1 << 32) + highMemorySize : nil,
      configurationRange: Self.configurationAccess..<Self.configurationAccess + EnhancedConfigurationAccess.size,
      tablesRange: Self.acpiTables)
  }
}
