import Testing
import VFIO

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

  @Test("a usable device is described with its PASIDs, ATS and page requests")
  func aDevicesServices() {
    let host = HardwareInformation(
      vtd: .init(capability: 0, extendedCapability: 1 << 29 | 1 << 2, hasReadOnlyErratum: false), capabilities: [],
      pasidWidth: 20)
    let bare = HostConfigurationSpace([UInt8](repeating: 0, count: 4096))
    #expect(HostCheckText.text(of: .init(host, bare)) == "20 bits of PASID, no ATS, no PRI")
    var image = [UInt8](repeating: 0, count: 4096)
    // ATS, then PRI.
    image[0x100] = 0x0f
    image[0x103] = 0x11
    image[0x110] = 0x13
    let able = HostConfigurationSpace(image, services: [.addressTranslation, .pageRequests])
    #expect(HostCheckText.text(of: .init(host, able)) == "20 bits of PASID, ATS, PRI")
    let old = HardwareInformation(vtd: nil, capabilities: .lacksATS)
    #expect(HostCheckText.text(of: .init(old, able)) == "no PASID, no ATS, no PRI")
  }
}
