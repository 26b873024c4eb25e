import Hardware
import PCI

/// The addresses, ports and pins of the board. They are those of q35, because kernels and users expect them.
public struct BoardLayout: Hashable, Sendable {
  // MARK: Memory

  static let configurationAccess = ACPIPlatform.configurationRange.lowerBound
  static let memory32Window: Range<UInt64> = 0xc000_0000..<0xfec0_0000
  static let ioapic: UInt64 = 0xfec0_0000
  /// CPUs access the registers of their local APIC here; for devices it is the interrupt address range.
  static let localInterrupts: Range<UInt64> = 0xfee0_0000..<0xfef0_0000
  /// The register page of the first remapping unit. The pages of the other units follow it.
  static let remappingUnit: UInt64 = 0xfed9_0000
  static let remappingUnitLimit = 16

  // MARK: I/O ports

  static let clock: UInt64 = 0x70
  static let serialPort: UInt64 = 0x3f8
  static let firmwareConfiguration: UInt64 = 0x510
  static let powerManagement = UInt64(ACPIPlatform.eventPort)
  static let hotplugController = UInt64(ACPIPlatform.hotplugPort)
  static let configurationPorts: UInt64 = 0xcf8
  static let ioWindow: Range<UInt64> = 0x1000..<0x1_0000

  // MARK: Interrupts

  static let serialPin = 4
  static let systemControlPin = Int(ACPIPlatform.systemControlInterrupt)
  /// The source-id of the IOAPIC's interrupt requests.
  static let ioapicRequester = RequesterID(bus: 0xff, device: 0, function: 0)

  /// Returns the IOAPIC pin to which the INTx of a function on bus 0 is wired. The DSDT's _PRT states the same.
  /// - Parameter interruptPin: 1 for INTA# to 4 for INTD#.
  static func pin(of function: RequesterID, interruptPin: UInt8) -> Int {
    16 + (Int(function.device) + Int(interruptPin) - 1) & 7
  }

  /// Returns the IOAPIC pin of a function on any bus. Below a port, the device number swizzles the function's pins onto
  /// the pins of the port (PCI-to-PCI Bridge Architecture 1.2, section 9.1).
  static func pin(of place: PCIPlace, interruptPin: UInt8) -> Int {
    guard let port = place.port else { return pin(of: place.address, interruptPin: interruptPin) }
    return pin(of: port, interruptPin: (interruptPin &- 1 &+ place.device) & 3 + 1)
  }

  // MARK: Values that depend on the machine

  /// Bytes of RAM below 4 GiB: 2 GiB, as on q35, if the machine has more than fits below `configurationAccess`.
  public let lowMemorySize: UInt64
  /// Bytes of RAM from 4 GiB on.
  public let highMemorySize: UInt64
  /// The top of the guest's address space, for 64-bit BARs that find no room below 4 GiB.
  public let memory64Window: Range<UInt64>

  /// - Parameter physicalAddressWidth: in bits, of a guest physical address.
  /// - Returns: nil if RAM and the 64-bit window do not both fit.
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
      lowRAMEnd: lowMemorySize, highRAMEnd: highMemorySize > 0 ? (1 << 32) + highMemorySize : nil)
  }
}
