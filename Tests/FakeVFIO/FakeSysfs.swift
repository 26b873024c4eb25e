import Glibc

/// A temporary sysfs, with other files of a host that a test needs. It is deleted with the test.
package final class FakeSysfs {
  /// The folder whose subfolder `sys` is the fake sysfs.
  package let parent: String
  package var root: String { "\(parent)/sys" }

  package init() {
    var template = Array("/tmp/nestling-sysfs-XXXXXX".utf8CString)
    parent = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    makeFolder("sys/bus/pci/devices")
  }

  deinit { system("rm -rf \(parent)") }

  /// Creates a folder and its parents.
  private func makeFolder(_ path: String) {
    var folder = parent
    for part in path.split(separator: "/") {
      folder += "/\(part)"
      mkdir(folder, 0o755)
    }
  }

  /// - Parameter path: The path below `parent`.
  package func write(_ text: String, to path: String) {
    makeFolder(path.split(separator: "/").dropLast().joined(separator: "/"))
    let descriptor = open("\(parent)/\(path)", O_WRONLY | O_CREAT, 0o644)
    _ = text.withCString { Glibc.write(descriptor, $0, text.utf8.count) }
    close(descriptor)
  }

  package func add(_ address: String, driver: String? = nil, group: String? = nil, file: String? = nil) {
    let folder = "\(root)/bus/pci/devices/\(address)"
    mkdir(folder, 0o755)
    if let driver { symlink("../../../bus/pci/drivers/\(driver)", "\(folder)/driver") }
    if let group { symlink("../../../kernel/iommu_groups/\(group)", "\(folder)/iommu_group") }
    guard let file else { return }
    makeFolder("sys/bus/pci/devices/\(address)/vfio-dev/\(file)")
    guard let minor = UInt32(file.drop { !$0.isNumber }) else { return }
    makeFolder("sys/dev/char")
    symlink(
      "../../devices/pci0000:00/0000:00:1c.0/\(address)/vfio-dev/\(file)",
      "\(root)/dev/char/\(FakeKernel.deviceMajor):\(minor)")
  }

  package func addGroup(_ name: String, type: String, _ members: [String]) {
    write(type + "\n", to: "sys/kernel/iommu_groups/\(name)/type")
    makeFolder("sys/kernel/iommu_groups/\(name)/devices")
    for member in members {
      symlink("\(root)/bus/pci/devices/\(member)", "\(root)/kernel/iommu_groups/\(name)/devices/\(member)")
    }
  }

  package func addUnit(_ name: String, capability: String, extended: String) {
    for (file, text) in [("cap", capability), ("ecap", extended), ("version", "1:0")] {
      write(text + "\n", to: "sys/class/iommu/\(name)/intel-iommu/\(file)")
    }
  }
}
