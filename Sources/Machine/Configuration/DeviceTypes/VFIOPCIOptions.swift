import Glibc
import Hardware
import Linux
import PCI
import VFIO
import VTd

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
    PropertyRule(otherwise: "iommufd is missing: name an -object iommufd; VFIO's containers are not offered") {
      $0.iommufd != nil
    },
  ]
}

/// Makes the function of a host device: finds and opens the device, binds it to its iommufd object, checks what the host
/// offers, attaches it to the guest's memory, and connects it to its unit.
extension VFIOPCIOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let objects = board.devices.objects.lazy.compactMap { $0 as? IOMMUFDOptions }
    guard let object = objects.first(where: { $0.id == iommufd }) else { return [] }
    do {
      return [try build(device.identity, on: board, at: place, object)]
    } catch {
      throw .passthrough(error)
    }
  }

  private func openHostDevice(
    _ shared: PassthroughObjects
  ) throws(PassthroughError) -> (file: KernelFile, found: HostDevice?, name: String) {
    if let file = file?.kernelFile(calls: shared.calls) {
      return (file, HostDevice.find(of: file, sysfs: shared.sysfs), hostName)
    }
    let found =
      if let host {
        try HostDevice.find(address: host, sysfs: shared.sysfs)
      } else {
        try HostDevice.find(folder: sysfsFolder ?? "")
      }
    return (try found.open(calls: shared.calls), found, found.address)
  }

  private func build(
    _ identity: DeviceIdentity, on board: Board, at place: PCIPlace, _ object: IOMMUFDOptions
  ) throws(PassthroughError) -> Function {
    let shared = board.passthrough
    let (file, found, name) = try openHostDevice(shared)
    do throws(PassthroughError.Problem) {
      let rom = try romSource()
      let unit = board.unit(at: place)
      let group = try shared.groups.join(
        found?.group, as: found?.address ?? name, iommufd: object.id, nests: unit?.options.firstStage == true)
      let memory = try shared.memory(of: object, ram: board.memory)
      let registration = try Self.register(file, with: board.hostDeviceFiles)
      let device = try Self.bind(file, found, to: memory.iommufd, sysfs: shared.sysfs)
      var hostOffersPageRequests = false
      if let unit {
        let information: HardwareInformation
        do {
          information = try memory.iommufd.hardwareInformation(device: device.id)
        } catch {
          throw .iommufd(error)
        }
        if let missing = HostRequirement.missing(for: unit.options, on: information) { throw .requirement(missing) }
        hostOffersPageRequests = information.vtd?.offersPageRequests == true
      }
      let bound: HostBoundDevice
      do {
        bound = try HostBoundDevice(
          device, memory: memory, nests: unit?.options.firstStage == true, group: group
        ) { notice in
          shared.report(PassthroughNotice(device: name, notice))
        }
      } catch {
        throw shared.problem(of: error, ram: board.memory) ?? .attach(error)
      }
      let services = Services(of: bound, behind: unit, hostOffersPageRequests: hostOffersPageRequests)
      let model = try VFIOPCI(
        device, environment: board.environment(at: place),
        surroundings: .init(
          deviceMemory: board.deviceMemory, memory: memory, registration: registration,
          group: group, name: name, guestRuns: shared.areBusesReset,
          report: { shared.report(PassthroughNotice(device: name, reason: $0)) }),
        rom: rom, address: place.address, services: services.offered)
      let events = board.events
      do {
        try model.start { event in
          // Only post an event: the machine's thread pauses the machine or removes the device. This handler runs on the
          // device's own thread, which ends when the device is removed.
          events.post(event == .error ? .deviceError : .hostRequest(identity, patience: requestPatience))
          shared.report(PassthroughNotice(device: name, reason: event == .error ? .error : .request))
        }
      } catch {
        model.function.revoke()
        throw .interrupts(error)
      }
      let pin = BoardLayout.pin(of: place, interruptPin: max(model.function.description.interruptPin, 1))
      let watch = board.eoiListeners.add(pin: pin) { [weak model] in model?.interruptEnded() }
      let bindings = unit.map { shared.bindings(of: $0) }
      if let refusal = services.refusal, model.hasPageRequests {
        shared.report(PassthroughNotice(device: name, reason: .pageRequestsRefused(refusal)))
      }
      if let bindings, let requests = services.requests {
        model.servePageRequests(requests, of: device.id, bound, bindings)
      }
      bindings?.add(bound, for: model.function.requester)
      // While the device can reach memory, the guest's invalidations must reach the host. So forwarding stops at the
      // release, after the device's requests have ended.
      model.function.environment.onRelease { [eoiListeners = board.eoiListeners, weak model] in
        bindings?.remove(bound)
        model?.detach()
        eoiListeners.remove(watch)
      }
      return model.function
    } catch {
      throw PassthroughError(name, error)
    }
  }

  private func romSource() throws(PassthroughError.Problem) -> ExpansionROM.Source {
    guard romBar != 0 else { return .nowhere }
    guard let romFile else { return .device }
    if romFile.isEmpty { return .nowhere }
    let content: [UInt8]
    do {
      content = try ExpansionROM.content(ofFile: romFile)
    } catch {
      throw .romFile(romFile, error)
    }
    guard (1...ExpansionROM.limit).contains(content.count) else {
      throw .romFileSize(romFile, limit: ExpansionROM.limit)
    }
    return .file(content)
  }

  private static func register(
    _ file: KernelFile, with registry: (any HostDeviceRegistry)?
  ) throws(PassthroughError.Problem) -> HostDeviceRegistration? {
    guard let registry else { return nil }
    do {
      return try HostDeviceRegistration(file, with: registry)
    } catch {
      throw .acceleratorRegistration(error)
    }
  }

  private static func bind(
    _ file: KernelFile, _ found: HostDevice?, to iommufd: IOMMUFD, sysfs: String
  ) throws(PassthroughError.Problem) -> VFIODevice {
    do {
      return try VFIODevice(file: file, to: iommufd)
    } catch {
      // The group has another owner (iommu_device_claim_dma_owner): often the kernel, for one of its drivers.
      if error.code == EPERM || error.code == EBUSY, let sibling = found?.sibling(withDriverIn: sysfs) {
        throw .groupHasDriver(sibling: sibling.address, driver: sibling.driver)
      }
      throw .bind(error)
    }
  }

  /// A device's translation services: those that the guest sees, the source of the page requests, and the kernel's
  /// error if the kernel refused page requests.
  private struct Services {
    var offered: TranslationServices = []
    var requests: HostPageRequests?
    var refusal: SystemError?

    init(of bound: HostBoundDevice, behind unit: RemappingUnit?, hostOffersPageRequests: Bool) {
      guard let unit, unit.options.deviceIOTLB else { return }
      offered.insert(.addressTranslation)
      guard unit.options.svm, hostOffersPageRequests else { return }
      do {
        requests = try bound.offerPageRequests()
        if requests != nil { offered.insert(.pageRequests) }
      } catch {
        refusal = error
      }
    }
  }
}
