import PCI
import Passthrough

/// `vfio-pci`: a PCI function of the host, passed through by the kernel's VFIO and iommufd. Names are QEMU's.
public struct VFIOPCIOptions: PCIDeviceOptions, DescriptorTaking, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  /// The device's address on the host: `0000:01:00.0`, or `01:00.0`.
  public var host: String?
  /// The device's folder in sysfs.
  public var sysfsFolder: String?
  /// The open device file (`/dev/vfio/devices/vfioN`).
  public var file: DescriptorReference?
  /// The id of the iommufd object.
  public var iommufd: Identifier?
  /// 0 hides the expansion ROM from the guest.
  public var romBar: UInt32 = 1
  /// The file that the guest sees as the expansion ROM; nil for the device's own ROM, empty for none.
  public var romFile: String?
  /// Whether the guest sees ATS; nil if that is possible.
  public var ats: Bool?
  /// The offset of the PASID capability; 0 to find one.
  public var pasidOffset: UInt16 = 0
  /// The time in milliseconds that the guest has to release the device on the host's request; 0 removes it at once.
  ///
  /// The default is longer than the five seconds that Linux waits after a slot's attention button (pciehp_ctrl.c), and
  /// shorter than the ten seconds after which the host's kernel asks again (vfio_unregister_group_dev).
  public var requestPatience: UInt32 = 8000

  public init() {}

  public var objects: [ObjectUse] {
    guard let iommufd else { return [] }
    return [ObjectUse(property: "iommufd", id: iommufd, typeNames: [IOMMUFDOptions.typeName])]
  }

  /// The device's name in messages: the value of host, sysfsdev or fd.
  public var hostName: String { host ?? sysfsFolder ?? file.map { "fd \($0.text)" } ?? "" }

  public static let typeName = "vfio-pci"
  public static let summary = "A PCI function of the host, through VFIO and iommufd"
  public static let category = DeviceCategory.misc

  private static let inKernel = "its interrupts go from VFIO to KVM within the kernel"
  private static let identity = "the guest sees the IDs that the device has on the host"

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) } + [
      Property("host", \.host, .notEmpty, help: "Address on the host, example: 0000:01:00.0 or 01:00.0"),
      Property("sysfsdev", \.sysfsFolder, .notEmpty, help: "Its folder in sysfs instead"),
      descriptorProperty(help: "Its open device file instead"),
      Property("iommufd", \.iommufd, help: "ID of an iommufd object"),
      Property("rombar", \.romBar, .within(0...1), help: "Show the expansion ROM: 0 for no"),
      Property(
        "romfile", \.romFile, help: "File to show as the expansion ROM, empty for none; the device's own if not given"),
      Property(
        "ats", \.ats.onOffAuto,
        help: "Show address translation services (ATS), on/off/auto (auto shows them where the host and the unit do)"),
      Property(
        "x-vpasid-cap-offset", \.pasidOffset,
        help: "Offset of the PASID capability in configuration space, which VFIO hides; 0 to find a place"),
      Property(
        "romsize", settled: UInt32.max, because: "the ROM's BAR is as large as the ROM", help: "Size of the ROM's BAR"),
      Property("x-no-mmap", settled: false, because: "BARs are always mapped if that is possible", help: "Map no BAR"),
      Property(
        "x-msix-relocation", settled: "off", because: "the MSI-X table stays where the device has it",
        help: "Move the MSI-X table"),
      Property(
        "enable-migration", settled: OnOffAuto.off, orAlso: [.auto], because: "there is no migration",
        help: "Migration of the device"),
      Property(
        "x-req", settled: true, because: "the host always gets the device back", help: "Obey the host's requests"),
      Property(
        "x-req-patience", \.requestPatience,
        help: "Milliseconds that the guest has to release the device on the host's request; 0 removes it at once"),
      Property("x-no-kvm-intx", settled: false, because: inKernel, help: "Deliver INTx through Nestling"),
      Property("x-no-kvm-msi", settled: false, because: inKernel, help: "Deliver MSI through Nestling"),
      Property("x-no-kvm-msix", settled: false, because: inKernel, help: "Deliver MSI-X through Nestling"),
      Property("x-pci-vendor-id", settled: UInt32.max, because: identity, help: "Show another vendor ID"),
      Property("x-pci-device-id", settled: UInt32.max, because: identity, help: "Show another device ID"),
      Property("x-pci-sub-vendor-id", settled: UInt32.max, because: identity, help: "Show another subsystem vendor ID"),
      Property("x-pci-sub-device-id", settled: UInt32.max, because: identity, help: "Show another subsystem ID"),
      Property(
        "x-igd-opregion", settled: false, because: "there is no VGA", help: "Show the graphics device's OpRegion"),
      Property("x-vga", settled: false, because: "there is no VGA", help: "Legacy VGA ranges"),
    ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "give exactly one of host, sysfsdev and fd") {
      [$0.host != nil, $0.sysfsFolder != nil, $0.file != nil].count(where: { $0 }) == 1
    },
    PropertyRule(otherwise: "x-vpasid-cap-offset is 0, or a multiple of 4 from 0x100 to 0xff8") {
      $0.pasidOffset == 0 || $0.pasidOffset % 4 == 0 && (0x100...0xff8).contains($0.pasidOffset)
    },
    PropertyRule(otherwise: "iommufd is missing: name an -object iommufd; VFIO's containers are not offered") {
      $0.iommufd != nil
    },
  ]
}

/// Makes the function of a host device (`PassthroughObjects.build`), and connects it to the board's events and EOIs.
extension VFIOPCIOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let objects = board.devices.objects.lazy.compactMap { $0 as? IOMMUFDOptions }
    guard let iommufd, let object = objects.first(where: { $0.id == iommufd }) else { return [] }
    let calls = board.passthrough.calls
    let source: PassthroughSource =
      if let file = file?.kernelFile(calls: calls) {
        .file(file, name: hostName)
      } else {
        host.map { .address($0) } ?? .folder(sysfsFolder ?? "")
      }
    do {
      let (function, interruptEnded) = try board.passthrough.build(
        source, romFile: romBar == 0 ? "" : romFile,
        choices: CapabilityChoices(addressTranslation: ats, pasidOffset: pasidOffset == 0 ? nil : Int(pasidOffset)),
        iommufd: iommufd.text,
        iommufdFile: { object.file?.kernelFile(calls: calls) }, for: board, at: place.address,
        in: board.environment(at: place), behind: board.unit(at: place)
      ) { [events = board.events, requestPatience] event in
        // Only post an event: the machine's thread pauses the machine or removes the device. This handler runs on the
        // device's own thread, which ends when the device is removed.
        switch event {
        case .error: events.post(.deviceError)
        case .request: events.post(.hostRequest(device.identity, patience: requestPatience))
        }
      }
      let pin = BoardLayout.pin(of: place, interruptPin: max(function.description.interruptPin, 1))
      let listener = board.eoiListeners.add(pin: pin, interruptEnded)
      function.environment.onRelease { [eoiListeners = board.eoiListeners] in eoiListeners.remove(listener) }
      return [function]
    } catch {
      throw .passthrough(error)
    }
  }
}
