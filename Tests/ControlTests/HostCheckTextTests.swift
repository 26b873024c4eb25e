import Testing

@testable import Control
@testable import Passthrough

/// Checks the text of `check-host` for a host without IOMMU and VFIO.
@Suite struct HostCheckTextTests {
  @Test("a host without IOMMU and VFIO is described line by line, and is not ready")
  func aHostWithoutAnything() {
    let check = HostCheck(devices: ["00:03.0", "nonsense"], root: "/nonexistent")
    let lines = HostCheckText.text(of: check).split(separator: "\n").map(String.init)
    func line(_ name: String) -> String? {
      lines.first { $0.hasPrefix(name + "  ") }.map { String($0.drop { $0 != " " }.drop { $0 == " " }) }
    }
    #expect(line("kernel") == "unknown")
    #expect(
      lines.contains { $0.hasPrefix("kernel options") && $0.hasSuffix("/boot has no configuration file for it") })
    #expect(lines.contains { $0.hasPrefix("command line") && $0.hasSuffix("no IOMMU options") })
    #expect(lines.contains { $0.hasPrefix("IOMMU groups") && $0.hasSuffix("none: no IOMMU is enabled") })
    #expect(lines.contains { $0.hasPrefix("VT-d units") && $0.hasSuffix("none: boot with intel_iommu=on,sm_on") })
    #expect(
      line("00:03.0")
        == "no driver, no group, no IOMMU: no: there is no such device on this host; lspci -D lists them")
    #expect(line("nonsense")?.hasSuffix("no: not the address of a PCI function, such as 0000:01:00.0") == true)
    #expect(lines.last?.hasSuffix("  no") == true && !check.isReady)
  }
}
