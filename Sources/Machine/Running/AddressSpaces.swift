import Devices
import Hardware
import PCI
import VTd

/// The address spaces of the machine and their regions, for `info mtree`.
extension MachineInspection {
  public struct AddressSpace: Hashable, Sendable {
    public struct Region: Hashable, Sendable {
      public let first: UInt64
      /// Address of the last byte.
      public let last: UInt64
      public let name: String
      public let isRAM: Bool
      /// Whether the guest placed the region (a BAR). Where regions overlap, those of the board have priority.
      public let isMovable: Bool
    }

    public let name: String
    /// QEMU's name for the region that contains all others.
    public let rootName: String
    /// Address of the last byte.
    public let last: UInt64
    /// The regions, in the order of their addresses.
    public let regions: [Region]
  }

  public var addressSpaces: [AddressSpace] {
    let ram = board.memory.regions.map { region in
      AddressSpace.Region(
        first: region.address, last: region.address + (region.size - 1),
        name: region.address == 0 ? "ram-below-4g" : "ram-above-4g", isRAM: true, isMovable: false)
    }
    return [
      AddressSpace(
        name: "memory", rootName: "system", last: .max,
        regions: (ram + regions(of: board.memoryBus)).sorted { $0.first < $1.first }),
      AddressSpace(name: "I/O", rootName: "io", last: 0xffff, regions: regions(of: board.ioBus)),
    ]
  }

  private func regions(of bus: AddressBus) -> [AddressSpace.Region] {
    bus.attachedRegions.map { region in
      AddressSpace.Region(
        first: region.first, last: region.last, name: name(of: region.device), isRAM: false,
        isMovable: region.priority == .movable)
    }
  }

  /// Returns the name of a region: QEMU's name, if QEMU has such a region.
  private func name(of device: any BusDevice) -> String {
    switch device {
    case is IOAPICDevice: return "ioapic"
    case is RemappingUnit: return "intel_iommu"
    case is EnhancedConfigurationAccess: return "pcie-mmcfg-mmio"
    case is ConfigurationAndResetPorts: return "pci-conf"
    case is CMOSClock: return "rtc"
    case is FirmwareConfiguration: return "fwcfg"
    case is ACPIHotplug: return "acpi-pci-hotplug"
    case is PowerManagement: return "ich9-pm"
    case is SerialPort: return "serial"
    case is DebugExit: return "isa-debug-exit"
    case is Board.NoDevice: return "apic-msi"
    case let region as any BaseAddressRegion:
      let owner = board.devices.device(of: region.function)?.typeName ?? "function"
      return "\(owner) \(region.function.requester.id) BAR\(region.bar)"
    default: return "\(type(of: device))"
    }
  }
}
