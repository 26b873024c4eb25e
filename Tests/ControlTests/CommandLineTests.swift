import Control
import Machine
import Testing

/// Command lines as people type them, and the machine that each asks for.
@Suite struct CommandLineTests {
  @Test func theLeastThatBoots() throws {
    let machine = try configuration("-kernel", "vmlinuz")
    #expect(machine.boot == MachineConfiguration.BootSource(kernel: "vmlinuz"))
    #expect(machine.accelerator == .kvm(device: "/dev/kvm"))
    #expect(machine.machineType == .q35)
    #expect(machine.processors == ProcessorTopology())
    #expect(machine.memory == MemoryConfiguration())
    #expect(machine.memory.size == 128 << 20)
    #expect(machine.serials == [.stdio])
    #expect(machine.rebootAction == .reset)
    #expect(machine.devices.isEmpty && machine.blockNodes.isEmpty && machine.objects.isEmpty)
    #expect(machine.logItems.isEmpty && machine.logPath == nil)
  }

  @Test func theDemo() throws {
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
    #expect(unit.scalableMode && unit.firstStage && unit.interruptRemapping == .on)
    let disk = try #require(machine.devices[1] as? VirtioBlockOptions)
    #expect(disk.drive == "disk0" && disk.virtio.accessPlatform)
    #expect(machine.devices[2] is VirtioRNGOptions)
    #expect((machine.devices[3] as? DebugExitOptions)?.base == 0xf4)
  }

  @Test func twoDashesAreAsGoodAsOne() throws {
    let machine = try configuration("--kernel", "k", "--m", "64", "--no-reboot")
    #expect(machine.memory.size == 64 << 20 && machine.rebootAction == .shutdown)
  }

  private static let sizes: [(String, UInt64)] = [
    ("512", 536_870_912), ("2G", 2_147_483_648), ("size=2G", 2_147_483_648), ("1.5g", 1_610_612_736),
    ("65536K", 67_108_864),
    ("16", 16_777_216), ("67108864B", 67_108_864),
  ]

  @Test(arguments: sizes)
  func memorySizes(_ text: String, _ size: UInt64) throws {
    #expect(try configuration("-kernel", "k", "-m", text).memory.size == size)
  }

  @Test(arguments: ["4", "cpus=4", "4,cores=4", "cores=4", "4,sockets=1,threads=1", "4,maxcpus=4,dies=1,clusters=1"])
  func processors(_ text: String) throws {
    #expect(try configuration("-kernel", "k", "-smp", text).processors == ProcessorTopology(coresPerSocket: 4))
  }

  @Test func machineOptionsAddUp() throws {
    let machine = try configuration(
      "-kernel", "k", "-machine", "q35", "-machine", "accel=kvm:tcg", "-machine", "kernel_irqchip=split",
      "-accel", "kvm,device=/dev/other,kernel-irqchip=split", "-enable-kvm")
    #expect(machine.accelerator == .kvm(device: "/dev/other"))
  }

  @Test func memoryFromABackend() throws {
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
  }

  private static let backends: [(String, SerialBackend)] = [
    ("none", .none), ("null", .null), ("stdio", .stdio), ("mon:stdio", .stdio),
    ("file:/tmp/a,b", .file(path: "/tmp/a,b")),
    ("unix:/tmp/s", .unixSocket(path: "/tmp/s", server: false, wait: false)),
    ("unix:/tmp/s,server=on", .unixSocket(path: "/tmp/s", server: true, wait: true)),
    ("unix:/tmp/s,server=on,wait=off", .unixSocket(path: "/tmp/s", server: true, wait: false)),
    ("unix:/tmp/s,server,nowait", .unixSocket(path: "/tmp/s", server: true, wait: false)),
    ("unix:/tmp/a,,b,server", .unixSocket(path: "/tmp/a,b", server: true, wait: true)),
  ]

  @Test(arguments: backends)
  func serialBackends(_ text: String, _ backend: SerialBackend) throws {
    #expect(try configuration("-kernel", "k", "-serial", text).serials == [backend])
  }

  @Test func noDefaultsMeansNoSerialPort() throws {
    #expect(try configuration("-kernel", "k", "-nodefaults").serials == [])
    #expect(try configuration("-nodefaults", "-kernel", "k", "-serial", "stdio").serials == [.stdio])
  }

  @Test func whatIsSoAnywayIsAccepted() throws {
    let machine = try configuration(
      "-no-user-config", "-display", "none", "-vga", "none", "-net", "none", "-nic", "none", "-monitor", "none",
      "-parallel", "none", "-nographic", "-kernel", "k")
    #expect(machine.serials == [.stdio] && machine.devices.isEmpty)
  }

  @Test func drives() throws {
    let machine = try configuration(
      "-kernel", "k", "-drive", "file=a,,b.img,if=none,id=a,format=raw,discard=unmap", "-drive",
      "if=none,file=c.img,read-only=on", "-drive", "file=d.img,if=virtio", "-drive", "file=e.img,if=none,discard=off")
    #expect(
      machine.blockNodes == [
        BlockNode(id: "a", path: "a,b.img", discardUnmaps: true), BlockNode(id: "none0", path: "c.img", readOnly: true),
        BlockNode(id: "virtio0", path: "d.img"), BlockNode(id: "none1", path: "e.img"),
      ])
    #expect((machine.devices.first as? VirtioBlockOptions)?.drive == "virtio0")
    #expect(machine.devices.count == 1)
  }

  @Test func blockNodes() throws {
    let machine = try configuration(
      "-kernel", "k", "-blockdev", "driver=file,node-name=f,filename=a.img,discard=unmap",
      "-blockdev", "driver=raw,node-name=r,file=f,discard=unmap",
      "-blockdev", "raw,node-name=n,file.driver=file,file.filename=b.img,read-only=on",
      "-blockdev", "driver=file,node-name=kept,filename=c.img",
      "-blockdev", "driver=raw,node-name=over,file=kept,discard=unmap",
      "-device", "virtio-blk,drive=r")
    #expect(
      machine.blockNodes == [
        BlockNode(id: "f", path: "a.img", discardUnmaps: true),
        BlockNode(id: "r", path: "a.img", discardUnmaps: true, underlying: "f"),
        BlockNode(id: "n", path: "b.img", readOnly: true), BlockNode(id: "kept", path: "c.img"),
        BlockNode(id: "over", path: "c.img", underlying: "kept"),
      ])
  }

  @Test func entropyObjects() throws {
    let machine = try configuration(
      "-kernel", "k", "-object", "rng-random,id=rng0,filename=/dev/hwrng", "-object", "rng-builtin,id=rng1", "-device",
      "virtio-rng-pci,rng=rng0", "-device", "virtio-rng-pci,rng=rng1,max-bytes=9223372036854775807,period=65536")
    let sources = machine.devices.compactMap { $0 as? VirtioRNGOptions }.map { machine.entropySource(of: $0) }
    #expect(sources == [.file(path: "/dev/hwrng"), .host])
  }

  @Test func whatAResetDoes() throws {
    #expect(try configuration("-kernel", "k", "-action", "reboot=shutdown").rebootAction == .shutdown)
    #expect(try configuration("-kernel", "k", "-no-reboot", "-action", "reboot=reset").rebootAction == .reset)
    #expect(try configuration("-kernel", "k", "-action", "shutdown=poweroff").rebootAction == .reset)
  }
}
