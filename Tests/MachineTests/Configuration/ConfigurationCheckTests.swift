import Hardware
import Machine
import Testing

@Suite struct ConfigurationCheckTests {
  /// Returns a bootable configuration without devices.
  private func configuration() -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.boot = MachineConfiguration.BootSource(kernel: "vmlinuz")
    return configuration
  }

  private func disk(_ drive: String, id: String? = nil, at device: UInt8? = nil) throws -> VirtioBlockOptions {
    var disk = VirtioBlockOptions()
    disk.drive = drive
    disk.id = try id.map { try Identifier(text: $0) }
    disk.function.address = device.map { RequesterID(bus: 0, device: $0, function: 0) }
    return disk
  }

  private func problem(_ configuration: MachineConfiguration) -> ConfigurationError? {
    do throws(ConfigurationError) {
      try configuration.check()
      return nil
    } catch {
      return error
    }
  }

  @Test("a plain machine passes the check")
  func aPlainMachineIsFine() {
    #expect(problem(configuration()) == nil)
  }

  @Test("a machine with nothing to boot is refused")
  func somethingMustBoot() {
    #expect(problem(MachineConfiguration()) == .nothingToBoot)
  }

  @Test("RAM outside its bounds, or not a multiple of the page size, is refused")
  func memoryHasBounds() {
    var wanted = configuration()
    for (size, fits) in [
      (UInt64(16) << 20, true), (16 << 20 - 4096, false), (0, false), (1 << 45, true), (1 << 46, false), (.max, false),
    ] {
      wanted.memory.size = size
      #expect((problem(wanted) == nil) == fits, "\(size)")
    }
    wanted.memory.size = 64 << 20 + 1
    #expect(problem(wanted) == .memoryNotMultiple(size: 64 << 20 + 1, pageSize: 4096))
    wanted.memory.size = 65 << 20
    wanted.memory.hugePages = .bytes(2 << 20)
    #expect(problem(wanted) == .memoryNotMultiple(size: 65 << 20, pageSize: 2 << 20))
    wanted.memory.size = 64 << 20
    #expect(problem(wanted) == nil)
  }

  @Test("0 CPUs, more than 4096 CPUs and several sockets are refused")
  func processorsHaveBounds() {
    var wanted = configuration()
    wanted.processors = ProcessorTopology(sockets: 0)
    #expect(problem(wanted) == .processorsOutOfRange(count: 0, highest: 4096))
    wanted.processors = ProcessorTopology(sockets: 64, coresPerSocket: 64, threadsPerCore: 2)
    #expect(problem(wanted) == .processorsOutOfRange(count: 8192, highest: 4096))
    wanted.processors = ProcessorTopology(sockets: 2, coresPerSocket: 2)
    #expect(problem(wanted) == .topologyNotOffered(wanted.processors))
    wanted.processors = ProcessorTopology(coresPerSocket: 4096)
    #expect(problem(wanted) == nil)
  }

  @Test("a second serial port is refused")
  func thereIsOneSerialPort() {
    var wanted = configuration()
    wanted.serials = [.none, .none]
    #expect(problem(wanted) == .tooManySerialPorts(count: 2, highest: 1))
  }

  @Test("a chardev has one frontend unless it is multiplexed")
  func chardevDevicesHaveOneFrontendUnlessMultiplexed() throws {
    let id = try Identifier(text: "c0")
    var wanted = configuration()
    wanted.serials = [.chardev(id)]
    #expect(problem(wanted) == .serial(index: 0, .notFound(id)))
    var device = NullChardevOptions()
    wanted.chardevs = [device]
    #expect(problem(wanted) == .chardev(index: 0, .missingID))
    device.id = id
    wanted.chardevs = [device]
    #expect(problem(wanted) == nil)
    wanted.monitors = [try MonitorOptions([PropertyAssignment(name: "chardev", value: "c0")])]
    #expect(problem(wanted) == .monitor(index: 0, .inUse(id)))
    device.multiplexed = true
    wanted.chardevs = [device, device]
    #expect(problem(wanted) == .chardev(index: 1, .duplicateID(id)))
    wanted.chardevs = [device]
    #expect(problem(wanted) == nil)
    var first = StdioChardevOptions()
    first.id = try Identifier(text: "s0")
    var second = first
    second.id = try Identifier(text: "s1")
    wanted.chardevs += [first, second]
    #expect(problem(wanted) == .chardev(index: 2, .standardInputTaken))
  }

  @Test("a device that names an unknown block node is refused")
  func devicesNameNodesThatExist() throws {
    var wanted = configuration()
    wanted.blockNodes = [BlockNode(id: "disk", path: "a.img")]
    wanted.devices = [try disk("dsik")]
    #expect(
      problem(wanted) == .device(index: 0, .unknownNode(NodeUse(property: "drive", id: "dsik"), known: ["disk"])))
  }

  @Test("a writable block node has one user; a read-only one may have several")
  func aWritableNodeHasOneUser() throws {
    var wanted = configuration()
    wanted.blockNodes = [BlockNode(id: "disk", path: "a.img")]
    wanted.devices = [try disk("disk", id: "one"), try disk("disk")]
    let user = BlockNodeUser.device(typeName: "virtio-blk-pci", id: try Identifier(text: "one"))
    #expect(
      problem(wanted) == .device(index: 1, .nodeInUse(NodeUse(property: "drive", id: "disk"), by: user)))
    wanted.blockNodes[0].readOnly = true
    #expect(problem(wanted) == nil)
  }

  @Test("a block node may lie over another node that exists, is unused and is not read-only")
  func nodesLieOverOtherNodes() throws {
    var wanted = configuration()
    wanted.blockNodes = [
      BlockNode(id: "file", path: "a.img"), BlockNode(id: "raw", path: "a.img", underlying: "file"),
    ]
    wanted.devices = [try disk("raw")]
    #expect(problem(wanted) == nil)
    wanted.devices = [try disk("file")]
    #expect(
      problem(wanted)
        == .device(index: 0, .nodeInUse(NodeUse(property: "drive", id: "file"), by: .node("raw"))))
    wanted.devices = []
    wanted.blockNodes.append(BlockNode(id: "again", path: "a.img", underlying: "file"))
    #expect(problem(wanted) == .blockNode(index: 2, .underlyingInUse("file", by: .node("raw"))))
    wanted.blockNodes[2] = BlockNode(id: "late", path: "b.img", underlying: "later")
    #expect(problem(wanted) == .blockNode(index: 2, .unknownUnderlying("later", known: ["file", "raw"])))
    wanted.blockNodes[2] = BlockNode(id: "raw", path: "b.img")
    #expect(problem(wanted) == .blockNode(index: 2, .duplicateID("raw")))
    wanted.blockNodes = [
      BlockNode(id: "file", path: "a.img", readOnly: true), BlockNode(id: "raw", path: "a.img", underlying: "file"),
    ]
    #expect(problem(wanted) == .blockNode(index: 1, .underlyingReadOnly("file")))
  }

  @Test("ids are required, and unique among objects and among devices")
  func identifiersAreUnique() throws {
    var wanted = configuration()
    let id = try Identifier(text: "rng")
    var random = RNGRandomOptions()
    #expect(random.id == nil)
    wanted.objects = [random]
    #expect(problem(wanted) == .object(index: 0, .missingID))
    random.id = id
    wanted.objects = [random, random]
    #expect(problem(wanted) == .object(index: 1, .duplicateID(id)))
    wanted.objects = [random]
    var device = VirtioRNGOptions()
    device.id = id
    wanted.devices = [device]
    #expect(problem(wanted) == nil, "objects and devices have separate namespaces")
    wanted.devices.append(device)
    #expect(problem(wanted) == .device(index: 1, .duplicateID(id)))
  }

  @Test("a virtio-rng device finds its entropy source; a missing object or one of another type is refused")
  func anEntropySourceIsFound() throws {
    var wanted = configuration()
    var device = VirtioRNGOptions()
    #expect(RNGBackend(of: device, among: wanted.objects) == .host)
    let id = try Identifier(text: "rng0")
    device.source = id
    wanted.devices = [device]
    let typeNames = ["rng-builtin", "rng-random"]
    let use = ObjectUse(property: "rng", id: id, typeNames: typeNames)
    #expect(problem(wanted) == .device(index: 0, .unknownObject(use, known: [])))
    var memory = MemoryBackendMemfdOptions()
    memory.id = id
    wanted.objects = [memory]
    #expect(problem(wanted) == .device(index: 0, .wrongObject(use, typeName: "memory-backend-memfd")))
    var random = RNGRandomOptions()
    random.id = id
    random.path = "/dev/hwrng"
    wanted.objects = [random]
    #expect(problem(wanted) == nil)
    #expect(RNGBackend(of: device, among: wanted.objects) == .file(path: "/dev/hwrng"))
  }

  @Test("devices without an address get addresses that no other device asks for")
  func devicesAreGivenAddressesAroundThoseThatAskForOne() throws {
    var wanted = configuration()
    wanted.blockNodes = [BlockNode(id: "d", path: "a.img", readOnly: true)]
    wanted.devices = [
      try disk("d"), IntelIOMMUOptions(), try disk("d", at: 1), VirtioRNGOptions(), try disk("d", at: 3), try disk("d"),
    ]
    #expect(problem(wanted) == nil)
    let placement = try wanted.devicePlacement()
    #expect(placement.map { $0?.device } == [2, nil, 1, 4, 3, 5])
  }

  @Test("two devices at one address are refused, and so is a device at a bridge's address")
  func addressesDoNotMeet() throws {
    var wanted = configuration()
    wanted.blockNodes = [BlockNode(id: "d", path: "a.img", readOnly: true)]
    let five = RequesterID(bus: 0, device: 5, function: 0)
    wanted.devices = [try disk("d", at: 5), try disk("d", at: 5)]
    #expect(
      problem(wanted)
        == .device(index: 1, .addressTaken(five, by: .device(typeName: "virtio-blk-pci", id: nil))))
    wanted.devices = [try disk("d", at: 0)]
    #expect(
      problem(wanted)
        == .device(index: 0, .addressTaken(MachineConfiguration.hostBridgeAddress, by: .hostBridge)))
    wanted.devices = [try disk("d", at: 31)]
    #expect(
      problem(wanted)
        == .device(index: 0, .addressTaken(MachineConfiguration.isaBridgeAddress, by: .isaBridge)))
  }

  @Test("bus 0 has room for thirty devices, and no more")
  func busZeroHasRoomForThirty() {
    var wanted = configuration()
    wanted.devices = [any DeviceOptions](repeating: VirtioRNGOptions(), count: 30)
    #expect(problem(wanted) == nil)
    wanted.devices.append(VirtioRNGOptions())
    #expect(problem(wanted) == .device(index: 30, .noFreeAddress))
  }
}
