import Linux
import VFIO

/// A PCI function of the host, as sysfs shows it, found by its address or its folder.
struct HostDevice: Hashable, Sendable {
  /// `0000:01:00.0`
  let address: String
  /// The function's folder below /sys.
  let folder: String
  /// The driver that the function is bound to.
  let driver: String?
  let group: String?
  /// VFIO's file for the function: `/dev/vfio/devices/vfio0`.
  let deviceFile: String?

  /// - Parameters:
  ///   - name: the address, with or without the domain.
  ///   - sysfs: the folder where sysfs is mounted.
  static func find(address name: String, sysfs: String = "/sys") throws(PassthroughError) -> HostDevice {
    guard let address = fullAddress(name) else { throw PassthroughError(name, .notAnAddress) }
    return try find(folder: "\(sysfs)/bus/pci/devices/\(address)", named: address)
  }

  static func find(folder: String, named name: String? = nil) throws(PassthroughError) -> HostDevice {
    let name = name ?? String(folder.split(separator: "/").last ?? "")
    guard (try? Folder.names(in: folder)) != nil else { throw PassthroughError(name, .noSuchDevice) }
    func target(_ link: String) -> String? {
      (try? Folder.link("\(folder)/\(link)")).flatMap { $0.split(separator: "/").last.map(String.init) }
    }
    let file = (try? Folder.names(in: "\(folder)/vfio-dev"))?.first { $0.hasPrefix("vfio") }
    return HostDevice(
      address: name, folder: folder, driver: target("driver"), group: target("iommu_group"),
      deviceFile: file.map { "/dev/vfio/devices/\($0)" })
  }

  /// Finds the function of an open device file of VFIO; nil if sysfs does not show it.
  static func find(of file: KernelFile, sysfs: String) -> HostDevice? {
    // /sys/dev/char/511:0 -> ../../devices/pci0000:00/0000:01:00.0/vfio-dev/vfio0
    guard let number = file.deviceNumber,
      let link = try? Folder.link("\(sysfs)/dev/char/\(number.major):\(number.minor)")
    else { return nil }
    let parts = link.split(separator: "/")
    guard parts.count >= 3, parts[parts.count - 2] == "vfio-dev" else { return nil }
    return try? find(folder: "\(sysfs)/bus/pci/devices/\(parts[parts.count - 3])")
  }

  /// Returns the first other function of its IOMMU group that is bound to a driver of the host. Such a driver keeps
  /// VFIO from owning the group.
  func sibling(withDriverIn sysfs: String) -> (address: String, driver: String)? {
    guard let group else { return nil }
    let folder = "\(sysfs)/kernel/iommu_groups/\(group)/devices"
    for member in (try? Folder.names(in: folder)) ?? [] where member != address {
      let link = try? Folder.link("\(folder)/\(member)/driver")
      // The drivers named here do not use the DMA API (`driver_managed_dma`).
      guard let driver = link?.split(separator: "/").last.map(String.init), !isVFIO(driver),
        driver != "pci-stub", driver != "pcieport"
      else { continue }
      return (member, driver)
    }
    return nil
  }

  /// Whether a driver is one of VFIO's, by its name: `vfio-pci`, `mlx5_vfio_pci`.
  private func isVFIO(_ driver: String) -> Bool {
    driver.indices.contains { driver[$0...].hasPrefix("vfio") }
  }

  /// Returns an address as `DDDD:BB:DD.F`, in lower case; nil if the text is not an address.
  static func fullAddress(_ name: String) -> String? {
    var parts = name.lowercased().split(separator: ":", omittingEmptySubsequences: false).map(String.init)
    if parts.count == 2 { parts.insert("0000", at: 0) }
    guard parts.count == 3 else { return nil }
    let last = parts[2].split(separator: ".", omittingEmptySubsequences: false)
    func isHexadecimal(_ text: some StringProtocol, _ digits: ClosedRange<Int>) -> Bool {
      digits.contains(text.utf8.count)
        && text.utf8.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x66).contains($0) }
    }
    guard last.count == 2, isHexadecimal(parts[0], 4...8), isHexadecimal(parts[1], 2...2),
      isHexadecimal(last[0], 2...2),
      let device = UInt8(last[0], radix: 16), device < 32, let function = UInt8(last[1]), function < 8
    else { return nil }
    return parts.joined(separator: ":")
  }

  /// Opens the function's device file.
  /// - Throws: the reason why there is none.
  func open(calls: any SystemCalls) throws(PassthroughError) -> KernelFile {
    guard let deviceFile else {
      if group == nil { throw PassthroughError(address, .noIOMMUGroup) }
      guard let driver, isVFIO(driver) else { throw PassthroughError(address, .notBound(driver: driver)) }
      throw PassthroughError(address, .noDeviceFile)
    }
    do {
      return try KernelFile(opening: deviceFile, calls: calls)
    } catch {
      throw PassthroughError(address, .open(error))
    }
  }
}

/// The registration of a device file with the accelerator, from before the device is bound until after its DMA has
/// ended.
final class HostDeviceRegistration: Sendable {
  private let registry: any HostDeviceRegistry
  private let file: KernelFile

  init(_ file: KernelFile, with registry: any HostDeviceRegistry) throws(PassthroughError.Problem) {
    do {
      try registry.add(file.descriptor)
    } catch {
      throw .acceleratorRegistration(error)
    }
    self.registry = registry
    self.file = file
  }

  deinit { registry.remove(file.descriptor) }
}
