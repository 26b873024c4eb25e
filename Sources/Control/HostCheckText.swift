import Passthrough

/// `nestling check-host [BDF...]`: checks whether this host can pass devices through, and lists the obstacles.
enum HostCheckText {
  static let command = "check-host"

  /// - Parameter names: The devices to check.
  /// - Returns: The lines to print and the exit status, which is 0 if the host is ready.
  static func run(_ names: [String]) -> (text: String, status: Int32) {
    let check = HostCheck(devices: names)
    return (text(of: check), check.isReady ? 0 : 1)
  }

  static func text(of check: HostCheck) -> String {
    var lines = [("kernel", check.kernelRelease), ("kernel options", text(of: check.kernelOptions))]
    lines.append(
      ("command line", check.commandLine.isEmpty ? "no IOMMU options" : check.commandLine.joined(separator: " ")))
    lines.append(("/dev/kvm", check.kvmProblem.map { ErrorText.reason(of: $0) } ?? "ok"))
    let iommufd = check.iommufdProblem.map { "\(ErrorText.reason(of: $0)): the kernel needs CONFIG_IOMMUFD" }
    lines.append(("/dev/iommu", iommufd ?? "ok"))
    lines.append(
      (
        "VFIO's device files",
        check.hasDeviceFiles
          ? "ok" : "missing: the kernel needs CONFIG_VFIO_PCI and CONFIG_VFIO_DEVICE_CDEV (modprobe vfio-pci)"
      ))
    lines.append(
      (
        "locked memory",
        check.lockedMemory.map { "\(ErrorText.size($0)) at most; a guest's RAM must fit (ulimit -l)" } ?? "no limit"
      ))
    lines.append(("IOMMU groups", text(of: check.groupCounts)))
    if check.units.isEmpty { lines.append(("VT-d units", "none: boot with intel_iommu=on,sm_on")) }
    for unit in check.units { lines.append((unit.name, text(of: unit))) }
    for device in check.devices { lines.append((device.address, text(of: device))) }
    lines.append(("x-flts=on", check.isReady ? "yes" : "no"))
    let width = lines.map(\.0.count).max() ?? 0
    return lines.map { $0.0 + String(repeating: " ", count: width - $0.0.count + 2) + $0.1 + "\n" }.joined()
  }

  private static func text(of options: [KernelOption]?) -> String {
    guard let options else { return "unknown: /boot has no configuration file for it" }
    let missing = options.filter { $0.state == .missing }.map(\.name)
    if !missing.isEmpty { return "missing: " + missing.joined(separator: ", ") }
    let modules = options.filter { $0.state == .module }.map(\.name)
    return "ok" + (modules.isEmpty ? "" : "; modules: " + modules.joined(separator: ", "))
  }

  private static func text(of groups: [String: Int]) -> String {
    if groups.isEmpty { return "none: no IOMMU is enabled" }
    return groups.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key.isEmpty ? "of unknown type" : $0.key)" }
      .joined(separator: ", ")
  }

  private static func text(of group: HostCheck.Group, of device: HostCheck.Device) -> String {
    let others = group.members.filter { $0.address != device.address }.map { member in
      "\(member.address) (\(member.driver.map { "driver \($0)" } ?? "no driver"))"
    }
    return "group \(group.name)" + (group.type.map { " of type \($0)" } ?? "")
      + (others.isEmpty ? "" : " with " + others.joined(separator: " and "))
  }

  private static func text(of unit: HostCheck.Unit) -> String {
    guard let capabilities = unit.capabilities else { return "shows no capabilities" }
    let missing = unit.missingForNesting
    return [
      "VT-d \(unit.version)", "\(capabilities.addressWidth) bits (MGAW)",
      missing.isEmpty ? "nested translation" : "no nested translation (ECAP lacks \(missing.joined(separator: ", ")))",
      capabilities.offersFirstStageGigabytePages ? "1 GiB pages" : "no 1 GiB pages (FS1GP): fs1gp=off",
      capabilities.offersFiveLevels ? "5 levels" : "4 levels",
      capabilities.pasidBits > 0 ? "\(capabilities.pasidBits) bits of PASID" : "no PASID",
      capabilities.offersPageRequests ? "page requests" : "no page requests (PRS)",
      capabilities.offersCoherentWalks ? "coherent walks" : "no coherent walks (SMPWC), which svm=on needs",
      capabilities.offersSnoopControl
        ? "snoop control" : "no snoop control (SC): its devices need a separate second stage",
      unit.remapsInterrupts ? "interrupt remapping" : "no interrupt remapping (IR), which VFIO needs",
    ].joined(separator: ", ")
  }

  private static func text(of device: HostCheck.Device) -> String {
    let place = [
      device.driver.map { "driver \($0)" } ?? "no driver", device.group.map { text(of: $0, of: device) } ?? "no group",
      device.unit ?? "no IOMMU",
    ].joined(separator: ", ")
    if let problem = device.problem { return "\(place): no: \(ErrorText.text(for: problem))" }
    if let problem = device.nestingProblem { return "\(place): only without x-flts: \(ErrorText.text(for: problem))" }
    return "\(place): yes" + (device.sharedVirtualMemory.map { " (\(text(of: $0)))" } ?? "")
  }

  static func text(of shared: HostCheck.SharedVirtualMemory) -> String {
    [
      shared.pasidWidth > 0 ? "\(shared.pasidWidth) bits of PASID" : "no PASID",
      shared.hasAddressTranslation ? "ATS" : "no ATS", shared.hasPageRequests ? "PRI" : "no PRI",
    ].joined(separator: ", ")
  }
}
