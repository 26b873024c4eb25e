import Control
import Machine
import Testing

/// Parses command lines as people type them and checks the machine that each describes.
@Suite struct CommandLineTests {
  @Test("-kernel alone describes a machine, with QEMU's defaults")
  func theLeastThatBoots() throws {
    let machine = try configuration("-kernel", "vmlinuz")
    #expect(machine.boot == MachineConfiguration.BootSource(kernel: "vmlinuz"))
    #expect(machine.accelerator == .kvm(device: "/dev/kvm"))
    #expect(machine.machineType == .q35)
    #expect(machine.processors == ProcessorTopology())
    #expect(machine.memory == MemoryConfiguration())
    #expect(machine.memory.size == 128 << 20)
    #expect(machine.serials == [.chardev(try Identifier(text: "serial0"))])
    #expect(machine.monitors.map(\.device) == [try Identifier(text: "serial0")])
    #expect((machine.chardevs.first as? StdioChardevOptions)?.multiplexed == true)
    #expect(machine.rebootAction == .reset)
    #expect(machine.devices.isEmpty && machine.blockNodes.isEmpty && machine.objects.isEmpty)
    #expect(machine.logItems.isEmpty && machine.logPath == nil)
  }

  @Test("a full command line of QEMU sets every part of the machine")
  func theDemo() throws {
    let machine = try configuration(
      "-M", "q35,accel=kvm,kernel-irqchip=split", "-cpu", "host", "-smp", "4", "-m", "512",
      "-kernel", "bzImage", "-initrd", "initrd.gz", "-append", "console=ttyS0 intel_iommu=on,sm_on",
      "-device", "intel-iommu,intremap=on,x-scalable-mode=on,x-flts=on",
      "-drive", "file=disk.img,if=none,id=disk0,format=raw,readonly=on",
      "-device", "virtio-blk-pci,drive=disk0,iommu_platform=on,disable-legacy=on",
      "-device", "virtio-rng-pci", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
      "-nographic", "-no-reboot", "-d", "iommu", "-D", "nestling.log")
    #expect(
      machine.boot
        == MachineConfiguration.BootSource(
          kernel: "bzImage", initrd: "initrd.gz", commandLine: "console=ttyS0 intel_iommu=on,sm_on"))
    #expect(machine.processors == ProcessorTopology(coresPerSocket: 4))
    #expect(machine.memory.size == 512 << 20)
    #expect(machine.rebootAction == .shutdown)
    #expect(machine.logItems == [.iommu] && machine.logPath == "nestling.log")
    #expect(machine.blockNodes == [BlockNode(id: "disk0", path: "disk.img", readOnly: true)])
    try #require(machine.devices.count == 4)
    let unit = try #require(machine.devices[0] as? IntelIOMMUOptions)
    #expect(unit.unit.scalableMode && unit.unit.firstStage && unit.unit.interruptRemapping == true)
    let disk = try #require(machine.devices[1] as? VirtioBlockOptions)
    #expect(disk.drive == "disk0" && disk.parameters.transport.iommuPlatform)
    #expect(machine.devices[2] is VirtioRNGOptions)
    #expect((machine.devices[3] as? DebugExitOptions)?.base == 0xf4)
  }

  @Test("two dashes mean the same as one")
  func twoDashesAreAsGoodAsOne() throws {
    let machine = try configuration("--kernel", "k", "--m", "64", "--no-reboot")
    #expect(machine.memory.size == 64 << 20 && machine.rebootAction == .shutdown)
  }

  private static let sizes: [(String, UInt64)] = [
    ("512", 536_870_912), ("2G", 2_147_483_648), ("size=2G", 2_147_483_648), ("1.5g", 1_610_612_736),
    ("65536K", 67_108_864),
    ("16", 16_777_216), ("67108864B", 67_108_864),
  ]

  @Test("-m takes MiB or a size with a suffix", arguments: sizes)
  func memorySizes(_ text: String, _ size: UInt64) throws {
    #expect(try configuration("-kernel", "k", "-m", text).memory.size == size)
  }

  @Test(
    "each notation of four CPUs makes four cores of one socket",
    arguments: ["4", "cpus=4", "4,cores=4", "cores=4", "4,sockets=1,threads=1", "4,maxcpus=4,dies=1,clusters=1"])
  func processors(_ text: String) throws {
    #expect(try configuration("-kernel", "k", "-smp", text).processors == ProcessorTopology(coresPerSocket: 4))
  }

  @Test("the values of several -machine and -accel options are combined")
  func machineOptionsAddUp() throws {
    let machine = try configuration(
      "-kernel", "k", "-machine", "q35", "-machine", "accel=kvm:tcg", "-machine", "kernel_irqchip=split",
      "-accel", "kvm,device=/dev/other,kernel-irqchip=split", "-enable-kvm")
    #expect(machine.accelerator == .kvm(device: "/dev/other"))
  }

  @Test func `ACPI hotplug is the default, and QEMU's option or Nestling's selects native hotplug`() throws {
    let property = "acpi-pci-hotplug-with-bridge-support"
    for words in [
      [], ["-machine", "q35,x-pci-hotplug=acpi"], ["-global", "ICH9-LPC.\(property)=on"],
      ["-global", "ICH9-LPC.\(property)=off", "-global", "ICH9-LPC.\(property)=on"],
    ] {
      #expect(try configuration(["-kernel", "k"] + words).hotplugWay == .acpi)
    }
    for words in [
      ["-machine", "q35,x-pci-hotplug=native"], ["-global", "ICH9-LPC.\(property)=off"],
      ["-global", "driver=ICH9-LPC,property=\(property),value=no"],
      ["-global", "ICH9-LPC.\(property)=off", "-M", "x-pci-hotplug=native"],
    ] {
      #expect(try configuration(["-kernel", "k"] + words).hotplugWay == .native)
    }
  }

  @Test("a memory backend provides the RAM of the machine")
  func memoryFromABackend() throws {
    let machine = try configuration(
      "-kernel", "k", "-M", "q35,memory-backend=ram",
      "-object", "memory-backend-memfd,id=ram,size=1G,hugetlb=on,hugetlbsize=2M,share=on")
    #expect(machine.memory.size == 1 << 30 && machine.memory.hugePages == .bytes(2 << 20))
    let host = try configuration(
      "-kernel", "k", "-M", "memory-backend=ram", "-m", "1G",
      "-object", "memory-backend-memfd,id=ram,size=1G,hugetlb=on")
    #expect(host.memory.hugePages == .hostDefault)
    let plain = try configuration(
      "-kernel", "k", "-M", "memory-backend=ram", "-object", "memory-backend-memfd,id=ram,size=64M")
    #expect(plain.memory.size == 64 << 20 && plain.memory.hugePages == nil)
    // With a memory backend, the RAM is shared by default. Without one it is private.
    #expect(machine.memory.isShared && host.memory.isShared && plain.memory.isShared)
    #expect(try !configuration("-kernel", "k", "-m", "64M").memory.isShared)
  }

  private struct Backend: Sendable {
    var text: String
    var device: any ChardevOptions
  }

  private static let backends: [Backend] = {
    func stdio(multiplexed: Bool = false) -> StdioChardevOptions {
      var options = StdioChardevOptions()
      options.multiplexed = multiplexed
      return options
    }
    func file(_ path: String) -> FileChardevOptions {
      var options = FileChardevOptions()
      options.path = path
      return options
    }
    func unix(_ path: String, server: Bool = false, wait: Bool? = nil) -> SocketChardevOptions {
      var options = SocketChardevOptions()
      options.path = path
      options.server = server
      options.wait = wait
      return options
    }
    func tcp(_ host: String, _ port: UInt16, server: Bool = false) -> SocketChardevOptions {
      var options = SocketChardevOptions()
      options.host = host
      options.port = port
      options.server = server
      return options
    }
    return [
      Backend(text: "null", device: NullChardevOptions()), Backend(text: "stdio", device: stdio()),
      Backend(text: "mon:stdio", device: stdio(multiplexed: true)),
      Backend(text: "file:/tmp/a,b", device: file("/tmp/a,b")), Backend(text: "unix:/tmp/s", device: unix("/tmp/s")),
      Backend(text: "unix:/tmp/s,server=on", device: unix("/tmp/s", server: true)),
      Backend(text: "unix:/tmp/s,server=on,wait=off", device: unix("/tmp/s", server: true, wait: false)),
      Backend(text: "unix:/tmp/s,server,nowait", device: unix("/tmp/s", server: true, wait: false)),
      Backend(text: "unix:/tmp/a,,b,server", device: unix("/tmp/a,b", server: true)),
      Backend(text: "tcp:localhost:4444,server", device: tcp("localhost", 4444, server: true)),
      Backend(text: "tcp::1", device: tcp("0.0.0.0", 1)),
    ]
  }()

  @Test("-serial accepts each type of backend", arguments: backends)
  private func serialBackends(_ backend: Backend) throws {
    let machine = try configuration("-kernel", "k", "-serial", backend.text)
    var wanted = backend.device
    wanted.id = try Identifier(text: "serial0")
    #expect(machine.serials == [.chardev(try Identifier(text: "serial0"))])
    try #require(machine.chardevs.count == 1)
    #expect(String(describing: machine.chardevs[0]) == String(describing: wanted))
    #expect(machine.monitors.count == (backend.text.hasPrefix("mon:") ? 1 : 0))
  }

  @Test("each monitor option adds a monitor with the given chardev and mode")
  func monitors() throws {
    let machine = try configuration(
      "-kernel", "k", "-chardev", "socket,id=q,path=/tmp/q,server=on,wait=off", "-mon", "chardev=q,mode=control",
      "-qmp", "unix:/tmp/a,server,nowait", "-qmp-pretty", "null", "-monitor", "stdio", "-monitor", "none", "-chardev",
      "null,id=s", "-serial", "chardev:s", "-mon", "m", "-chardev", "null,id=m")
    #expect(
      machine.chardevs.compactMap { $0.id?.text } == [
        "q", "compat_monitor0", "compat_monitor1", "compat_monitor2", "s", "m",
      ])
    #expect(
      machine.monitors.map { $0.device?.text } == ["q", "compat_monitor0", "compat_monitor1", "compat_monitor2", "m"])
    #expect(machine.monitors.map(\.mode) == [.control, .control, .control, .readline, .readline])
    #expect(machine.monitors.map(\.pretty) == [false, false, true, false, false])
    #expect(machine.serials == [.chardev(try Identifier(text: "s"))])
  }

  @Test("the default serial port leaves the terminal to another option, and -monitor none removes the monitor")
  func theDefaultSerialPortGivesWay() throws {
    let machine = try configuration("-kernel", "k", "-qmp", "stdio")
    #expect(machine.chardevs.last is NullChardevOptions && machine.monitors.count == 1)
    let other = try configuration("-kernel", "k", "-monitor", "none")
    #expect((other.chardevs.first as? StdioChardevOptions)?.multiplexed == false && other.monitors.isEmpty)
  }

  @Test("-nodefaults leaves out the serial port and the monitor")
  func noDefaultsMeansNoSerialPort() throws {
    #expect(try configuration("-kernel", "k", "-nodefaults").serials == [])
    #expect(try configuration("-nodefaults", "-kernel", "k", "-serial", "none").serials == [.none])
    let machine = try configuration("-nodefaults", "-kernel", "k", "-serial", "stdio")
    #expect(machine.serials.count == 1 && machine.monitors.isEmpty)
  }

  @Test("options that ask for Nestling's only behaviour are accepted")
  func whatIsSoAnywayIsAccepted() throws {
    let machine = try configuration(
      "-no-user-config", "-display", "none", "-vga", "none", "-net", "none", "-nic", "none", "-monitor", "none",
      "-parallel", "none", "-nographic", "-kernel", "k")
    #expect(machine.serials.count == 1 && machine.monitors.isEmpty && machine.devices.isEmpty)
  }

  @Test("-drive makes a block node, and with if=virtio a disk as well")
  func drives() throws {
    let machine = try configuration(
      "-kernel", "k", "-drive", "file=a,,b.img,if=none,id=a,format=raw,discard=unmap", "-drive",
      "if=none,file=c.img,read-only=on", "-drive", "file=d.img,if=virtio,file.locking=off", "-drive",
      "file=e.img,if=none,discard=off")
    #expect(
      machine.blockNodes == [
        BlockNode(id: "a", path: "a,b.img", discardUnmaps: true), BlockNode(id: "none0", path: "c.img", readOnly: true),
        BlockNode(id: "virtio0", path: "d.img", locking: .off), BlockNode(id: "none1", path: "e.img"),
      ])
    #expect((machine.devices.first as? VirtioBlockOptions)?.drive == "virtio0")
    #expect(machine.devices.count == 1)
  }

  @Test("-blockdev makes block nodes, nested in one option or over another node")
  func blockNodes() throws {
    let machine = try configuration(
      "-kernel", "k", "-blockdev", "driver=file,node-name=f,filename=a.img,discard=unmap",
      "-blockdev", "driver=raw,node-name=r,file=f,discard=unmap",
      "-blockdev", "raw,node-name=n,file.driver=file,file.filename=b.img,read-only=on,file.locking=on",
      "-blockdev", "driver=file,node-name=kept,filename=c.img,locking=off",
      "-blockdev", "driver=raw,node-name=over,file=kept,discard=unmap",
      "-device", "virtio-blk,drive=r")
    #expect(
      machine.blockNodes == [
        BlockNode(id: "f", path: "a.img", discardUnmaps: true, driver: .file),
        BlockNode(id: "r", path: "a.img", discardUnmaps: true, underlying: "f"),
        BlockNode(id: "n", path: "b.img", readOnly: true, locking: .on),
        BlockNode(id: "kept", path: "c.img", locking: .off, driver: .file),
        BlockNode(id: "over", path: "c.img", locking: .off, underlying: "kept"),
      ])
  }

  @Test("-object makes the entropy sources of virtio-rng devices")
  func entropyObjects() throws {
    let machine = try configuration(
      "-kernel", "k", "-object", "rng-random,id=rng0,filename=/dev/hwrng", "-object", "rng-builtin,id=rng1", "-device",
      "virtio-rng-pci,rng=rng0", "-device", "virtio-rng-pci,rng=rng1,max-bytes=9223372036854775807,period=65536")
    let sources = machine.devices.compactMap { $0 as? VirtioRNGOptions }.map {
      RNGBackend(of: $0, among: machine.objects)
    }
    #expect(sources == [.file(path: "/dev/hwrng"), .host])
  }

  @Test("-action and -no-reboot set what a guest's reset does")
  func whatAResetDoes() throws {
    #expect(try configuration("-kernel", "k", "-action", "reboot=shutdown").rebootAction == .shutdown)
    #expect(try configuration("-kernel", "k", "-no-reboot", "-action", "reboot=reset").rebootAction == .reset)
    #expect(try configuration("-kernel", "k", "-action", "shutdown=poweroff").rebootAction == .reset)
  }

  @Test func `-device and -object take JSON with typed values, with the same result as option strings`() throws {
    func devices(_ words: [String]) throws -> String {
      guard case .run(let configuration) = Control.parse(["-kernel", "k"] + words) else { throw NoConfiguration() }
      return "\(configuration.devices) \(configuration.objects)"
    }
    let cases: [(json: [String], option: [String])] = [
      (
        ["-device", #"{"driver":"edu","id":"e0","dma_mask":4095,"addr":"7"}"#],
        ["-device", "edu,id=e0,dma_mask=4095,addr=7"]
      ),
      // As a number, addr has the function in its three low bits.
      (["-device", "{'driver':'edu','addr':56}"], ["-device", "edu,addr=7"]),
      (
        [
          "-object", #"{"qom-type":"rng-random","id":"r","filename":"/dev/urandom"}"#, "-device",
          #"{"driver":"virtio-rng-pci","rng":"r","event_idx":false,"max-bytes":1024,"period":1000}"#,
        ],
        [
          "-object", "rng-random,id=r,filename=/dev/urandom", "-device",
          "virtio-rng-pci,rng=r,event_idx=off,max-bytes=1024,period=1000",
        ]
      ),
      (
        [
          "-m", "64M", "-machine", "q35,memory-backend=m", "-object",
          #"{"qom-type":"memory-backend-memfd","id":"m","size":67108864,"share":true}"#,
        ],
        ["-m", "64M", "-machine", "q35,memory-backend=m", "-object", "memory-backend-memfd,id=m,size=64M"]
      ),
    ]
    for (json, option) in cases {
      let made = try devices(json)
      let expected = try devices(option)
      #expect(made == expected)
    }
  }
}
