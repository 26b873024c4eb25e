import Linux
import PCI
import VFIO
import VTd

/// The result of checking this host's support for passed-through devices. The check reads sysfs, and opens and binds
/// devices; it leaves the host unchanged.
public struct HostCheck: Sendable {
  /// A remapping unit of the host, as its driver shows it.
  public struct Unit: Hashable, Sendable {
    public let name: String
    /// The version of the unit's architecture, such as `1:0`.
    public let version: String
    /// The unit's capabilities; nil if sysfs does not show them.
    public let capabilities: HardwareInformation.VTd?
    /// ECAP.IR.
    public var remapsInterrupts: Bool { capabilities.map { $0.extendedCapability >> 3 & 1 != 0 } ?? false }
    /// The missing bits among ECAP.SMTS, NEST, FSTS and SSTS.
    public var missingForNesting: [String] { capabilities.map(HostRequirement.missingForNesting) ?? [] }
  }

  /// An IOMMU group: its devices are passed through together, or not at all.
  public struct Group: Hashable, Sendable {
    public struct Member: Hashable, Sendable {
      public let address: String
      public let driver: String?
    }

    public let name: String
    /// The type of domain of its devices while host drivers use them: `DMA-FQ`, `identity`; nil if sysfs does not show
    /// it.
    public let type: String?
    public let members: [Member]
  }

  /// What the host has for shared virtual memory with a device.
  public struct SharedVirtualMemory: Hashable, Sendable {
    /// Width in bits of the PASIDs that the kernel has enabled for the device; 0 for none. Linux 6.12 reports 0.
    public let pasidWidth: Int
    /// Whether the device, its IOMMU and the kernel have ATS.
    public let hasAddressTranslation: Bool
    /// Whether the device and its IOMMU have page requests (PRI), which need ATS.
    public let hasPageRequests: Bool

    init(_ host: HardwareInformation, _ device: HostConfigurationSpace) {
      pasidWidth = host.pasidWidth
      let services = device.translationServices
      hasAddressTranslation =
        services[AddressTranslationControl.id] != nil && !host.capabilities.contains(.lacksATS)
        && host.vtd?.offersDeviceTLBs != false
      hasPageRequests =
        hasAddressTranslation && services[PageRequestControl.id] != nil && host.vtd?.offersPageRequests == true
    }
  }

  public struct Device: Hashable, Sendable {
    public let address: String
    public let driver: String?
    public let group: Group?
    /// The unit that translates the device's requests.
    public let unit: String?
    /// The reason why the device cannot be passed through to a guest without first stage; nil if it can.
    public let problem: PassthroughError?
    /// A further reason why the device cannot be passed through with x-flts=on; nil if there is none.
    public let nestingProblem: PassthroughError?
    /// Nil if the device cannot be bound, or its configuration space cannot be read.
    public let sharedVirtualMemory: SharedVirtualMemory?
  }

  public let kernelRelease: String
  /// The kernel's build options that passthrough needs; nil if its configuration file cannot be read.
  public let kernelOptions: [KernelOption]?
  /// Words of the kernel's command line about IOMMUs and VFIO.
  public let commandLine: [String]
  /// The reasons why /dev/kvm and /dev/iommu cannot be opened; nil if they can.
  public let kvmProblem: SystemError?
  public let iommufdProblem: SystemError?
  /// Whether VFIO makes a file for each device (CONFIG_VFIO_DEVICE_CDEV).
  public let hasDeviceFiles: Bool
  /// The limit of locked memory in bytes; nil for no limit.
  public let lockedMemory: UInt64?
  public let units: [Unit]
  public let devices: [Device]
  /// The number of IOMMU groups of each type. An empty name stands for groups without a type.
  public let groupCounts: [String: Int]

  /// Checks this host.
  /// - Parameter names: the addresses of devices, as in `host=`.
  public init(devices names: [String]) {
    self.init(devices: names, root: "")
  }

  /// - Parameter root: the folder that contains /sys, /proc and /boot.
  init(devices names: [String], root: String, calls: any SystemCalls = HostSystemCalls()) {
    let sysfs = "\(root)/sys"
    let release = Self.runningKernelRelease(root: root)
    kernelRelease = release
    kernelOptions = ["/boot/config-\(release)", "/lib/modules/\(release)/config"].lazy
      .compactMap { try? Folder.text(of: root + $0, limit: 1 << 20) }.first.map { KernelOption.read($0) }
    commandLine = ((try? Folder.text(of: "\(root)/proc/cmdline")) ?? "").split(separator: " ").map(String.init)
      .filter { word in ["intel_iommu", "amd_iommu", "iommu", "intremap", "vfio"].contains { word.hasPrefix($0) } }
    func problem(opening path: String) -> SystemError? {
      do {
        _ = try KernelFile(opening: path, calls: calls)
        return nil
      } catch {
        return error
      }
    }
    kvmProblem = problem(opening: "/dev/kvm")
    iommufdProblem = problem(opening: IOMMUFD.path)
    hasDeviceFiles = (try? Folder.names(in: "\(sysfs)/class/vfio-dev")) != nil
    lockedMemory = ResourceLimit.lockedMemory
    units = ((try? Folder.names(in: "\(sysfs)/class/iommu")) ?? []).filter { $0.hasPrefix("dmar") }.map { name in
      let folder = "\(sysfs)/class/iommu/\(name)/intel-iommu"
      func register(_ file: String) -> UInt64? {
        (try? Folder.text(of: "\(folder)/\(file)")).flatMap { UInt64($0, radix: 16) }
      }
      var capabilities: HardwareInformation.VTd?
      if let capability = register("cap"), let extended = register("ecap") {
        capabilities = .init(capability: capability, extendedCapability: extended, hasReadOnlyErratum: false)
      }
      return Unit(
        name: name, version: (try? Folder.text(of: "\(folder)/version")) ?? "?", capabilities: capabilities)
    }
    devices = names.map { Self.check($0, sysfs: sysfs, calls: calls) }
    let groups = (try? Folder.names(in: "\(sysfs)/kernel/iommu_groups")) ?? []
    groupCounts = groups.reduce(into: [:]) { counts, name in
      counts[(try? Folder.text(of: "\(sysfs)/kernel/iommu_groups/\(name)/type")) ?? "", default: 0] += 1
    }
  }

  /// Returns what `uname -r` prints.
  static func runningKernelRelease(root: String = "") -> String {
    (try? Folder.text(of: "\(root)/proc/sys/kernel/osrelease")) ?? "unknown"
  }

  private static func group(of device: HostDevice, sysfs: String) -> Group? {
    device.group.map { name in
      let folder = "\(sysfs)/kernel/iommu_groups/\(name)"
      let members = ((try? Folder.names(in: "\(folder)/devices")) ?? []).map { address in
        Group.Member(
          address: address,
          driver: (try? Folder.link("\(folder)/devices/\(address)/driver"))
            .flatMap { $0.split(separator: "/").last.map(String.init) })
      }
      return Group(name: name, type: try? Folder.text(of: "\(folder)/type"), members: members)
    }
  }

  /// Whether every named device can be passed through with x-flts=on; without named devices, whether any device could.
  public var isReady: Bool {
    kvmProblem == nil && iommufdProblem == nil
      && (devices.isEmpty
        ? hasDeviceFiles
          && units.contains { $0.capabilities != nil && $0.missingForNesting.isEmpty && $0.remapsInterrupts }
        : devices.allSatisfy { $0.problem == nil && $0.nestingProblem == nil })
  }

  private static func check(_ name: String, sysfs: String, calls: any SystemCalls) -> Device {
    let found: HostDevice
    do {
      found = try HostDevice.find(address: name, sysfs: sysfs)
    } catch {
      return Device(
        address: name, driver: nil, group: nil, unit: nil, problem: error, nestingProblem: nil,
        sharedVirtualMemory: nil)
    }
    let unit = (try? Folder.link("\(found.folder)/iommu")).flatMap { $0.split(separator: "/").last.map(String.init) }
    var problem: PassthroughError?
    var nestingProblem: PassthroughError?
    var shared: SharedVirtualMemory?
    do throws(PassthroughError) {
      let (missing, services) = try attempt(found, calls)
      if let missing { nestingProblem = PassthroughError(found.address, .requirement(missing)) }
      shared = services
    } catch {
      problem = error
    }
    return Device(
      address: found.address, driver: found.driver, group: group(of: found, sysfs: sysfs), unit: unit, problem: problem,
      nestingProblem: nestingProblem, sharedVirtualMemory: shared)
  }

  /// Opens and binds a device as a machine does, and closes it.
  /// - Returns: the first requirement of x-flts=on that its IOMMU does not meet, and what there is for shared virtual
  ///   memory.
  private static func attempt(
    _ found: HostDevice, _ calls: any SystemCalls
  ) throws(PassthroughError) -> (missing: HostRequirement?, SharedVirtualMemory?) {
    let file = try found.open(calls: calls)
    let iommufd: IOMMUFD
    do {
      iommufd = try IOMMUFD(calls: calls)
    } catch {
      throw PassthroughError(found.address, .iommufd(error))
    }
    let device: VFIODevice
    do {
      device = try VFIODevice(file: file, to: iommufd)
    } catch {
      throw PassthroughError(found.address, .bind(error))
    }
    var wanted = UnitOptions()
    wanted.scalableMode = true
    wanted.firstStage = true
    wanted.cachingMode = true
    let information: HardwareInformation
    do {
      information = try iommufd.hardwareInformation(device: device.id)
    } catch {
      throw PassthroughError(found.address, .iommufd(error))
    }
    let space = (try? device.region(7)).flatMap { try? VFIOPCI.bytes(of: $0, device) }.map {
      HostConfigurationSpace($0, services: [.addressTranslation, .pageRequests])
    }
    return (
      HostRequirement.missing(for: wanted, on: information), space.map { SharedVirtualMemory(information, $0) }
    )
  }
}

/// A build option of the host's kernel, from the kernel's configuration file.
public struct KernelOption: Hashable, Sendable {
  public enum State: Hashable, Sendable {
    case builtIn
    case module
    case missing
  }

  public let name: String
  public let state: State

  /// The options that passthrough needs.
  public static let names = [
    "CONFIG_KVM", "CONFIG_INTEL_IOMMU", "CONFIG_IRQ_REMAP", "CONFIG_IOMMUFD", "CONFIG_VFIO", "CONFIG_VFIO_PCI",
    "CONFIG_VFIO_DEVICE_CDEV",
  ]

  /// - Parameter text: a kernel's configuration file, with lines such as `CONFIG_KVM=m`.
  static func read(_ text: String) -> [KernelOption] {
    var states: [Substring: State] = [:]
    for line in text.split(separator: "\n") {
      let parts = line.split(separator: "=", maxSplits: 1)
      guard parts.count == 2, parts[0].hasPrefix("CONFIG_") else { continue }
      if parts[1] == "y" { states[parts[0]] = .builtIn }
      if parts[1] == "m" { states[parts[0]] = .module }
    }
    return names.map { KernelOption(name: $0, state: states[$0[...]] ?? .missing) }
  }
}
