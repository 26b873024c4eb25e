import Machine
import Testing

@testable import Control

@Suite struct HelpTests {
  @Test("help names every option", arguments: ["-help", "--help", "-h"])
  func helpNamesEveryOption(_ word: String) throws {
    let help = try #require(printed(word))
    for option in CommandOptions.all {
      for name in option.names { #expect(help.contains("-\(name)")) }
      for line in option.help { #expect(help.contains(line)) }
    }
    #expect(help.hasPrefix("Nestling emulator version 0.1.0\nusage: nestling [options]\n"))
    #expect(help.split(separator: "\n").allSatisfy { $0.count <= 120 })
  }

  @Test("no option's name is used twice")
  func optionsAreNamedOnce() {
    let names = CommandOptions.all.flatMap(\.names)
    #expect(Set(names).count == names.count)
  }

  @Test("-version prints name and version")
  func version() {
    #expect(printed("-version") == "Nestling emulator version 0.1.0\n")
    #expect(printed("--version") == "Nestling emulator version 0.1.0\n")
  }

  @Test("help needs no kernel, and ignores mistakes after it")
  func helpNeedsNothingToBoot() {
    #expect(printed("-m", "64", "-help") != nil)
    #expect(printed("-device", "help", "-nosuch") != nil)
  }

  @Test("device types are listed in QEMU's layout")
  func deviceTypesInQEMUsLayout() {
    #expect(
      printed("-device", "help") == """
        Controller/Bridge/Hub devices:
        name "pcie-root-port", bus PCI, desc "PCI Express Root Port"

        Network devices:
        name "virtio-net-pci", bus PCI, alias "virtio-net", desc "Network device over a netdev (-netdev)"

        Storage devices:
        name "vhost-user-blk-pci", bus PCI, alias "vhost-user-blk", desc "Disk that another process serves (vhost-user)"
        name "vhost-user-fs-pci", bus PCI, alias "vhost-user-fs", desc "Folder of the host that another process serves (vhost-user)"
        name "virtio-blk-pci", bus PCI, alias "virtio-blk", desc "Disk over a block node (-drive, -blockdev)"

        Misc devices:
        name "dma-engine", bus PCI, desc "DMA engine with PASID, ATS and page requests, to drive the IOMMU"
        name "edu", bus PCI, desc "Educational device: interrupts, and DMA through the IOMMU"
        name "intel-iommu", bus System, desc "Intel IOMMU (VT-d) DMA Remapping device"
        name "iommu-testdev", bus PCI, desc "A test device for IOMMU"
        name "isa-debug-exit", bus ISA, desc "Port by which a guest ends Nestling with a status"
        name "vfio-pci", bus PCI, desc "A PCI function of the host, through VFIO and iommufd"
        name "virtio-rng-pci", bus PCI, alias "virtio-rng", desc "Entropy for the guest"

        """)
    #expect(printed("-device", "?") == printed("-device", "help"))
  }

  @Test("every property of every device type and object type is listed")
  func everyPropertyOfEveryTypeIsListed() throws {
    for type in DeviceTypes.all {
      let help = try #require(printed("-device", "\(type.typeName),help"))
      #expect(help.hasPrefix("\(type.typeName) options:\n"))
      for property in type.propertyDescriptions {
        #expect(help.contains("  \(property.name)=<\(property.typeName)>"))
        for alias in property.aliases { #expect(help.contains(alias)) }
      }
    }
    for type in ObjectTypes.all {
      #expect(try #require(printed("-object", "help")).contains(type.typeName))
      let help = try #require(printed("-object", "\(type.typeName),help"))
      for property in type.propertyDescriptions { #expect(help.contains("  \(property.name)=<")) }
    }
  }

  @Test("properties are listed in QEMU's layout")
  func propertiesInQEMUsLayout() throws {
    let lines = try #require(printed("-device", "intel-iommu,help")).split(separator: "\n").map(String.init)
    #expect(
      lines.contains(
        "  caching-mode=<bool>    - The guest also invalidates entries that become present; on with a vfio-pci behind the unit, else off"
      ))
    #expect(lines.contains("  aw-bits=<uint8>        - Bits of a DMA address: 39, 48 or 57 (default: 48)"))
    #expect(lines.contains { $0.hasPrefix("  x-scalable-mode=<bool> - ") })
  }

  @Test func `-nic help lists netdev types and models, and model=help lists the models`() throws {
    let models = "Available NIC models for this configuration:\nvirtio-net-pci (aka virtio)\n"
    #expect(printed("-nic", "model=help") == models && printed("-nic", "tap,model=?") == models)
    let types = try #require(printed("-netdev", "help"))
    #expect(printed("-nic", "help") == types + "\n" + models)
    #expect(printed("-nic", "passt,help") == printed("-netdev", "passt,help"))
  }

  @Test("-machine, -accel, -cpu and -d have a help text")
  func smallHelps() throws {
    #expect(try #require(printed("-machine", "help")).contains("q35"))
    #expect(try #require(printed("-M", "q35,help")).contains("kernel-irqchip=<str>"))
    #expect(try #require(printed("-accel", "help")).contains("kvm"))
    #expect(try #require(printed("-cpu", "help")).contains("host"))
    #expect(try #require(printed("-d", "help")).contains("iommu"))
  }
}
