import Glibc
import Linux
import TestSupport
import Testing

@testable import Machine

/// Adds and removes block nodes and objects of a running machine without a CPU.
@Suite struct BackendRequestTests {
  private let folder = "/tmp/nestling-backends-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private var image: String { folder + "/disk" }

  init() throws {
    mkdir(folder, 0o700)
    try FileDescriptor(opening: image, O_WRONLY | O_CREAT, mode: 0o600).write([UInt8](repeating: 0, count: 8192))
  }

  /// Runs a machine whose root bus accepts devices.
  private func run(
    _ configuration: MachineConfiguration = MachineConfiguration(), _ body: (RunningMachine) throws -> Void
  )
    throws
  {
    var configuration = configuration
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    machine.board.buses.set(LiveBus(name: "pcie.0", type: .pci, isHotpluggable: true))
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    try body(machine)
    machine.control.requestQuit(.monitorQuit)
    thread.join()
  }

  private func picture(_ machine: RunningMachine) -> [String] {
    machine.devices.map(\.path) + machine.inspection.blockNodes.map { "\($0.node) \($0.users)" }
      + machine.board.devices.objects.map { "\($0)" }
  }

  /// Expects a refusal that changes nothing.
  private func refused(
    _ request: MachineRequest, by machine: RunningMachine, _ location: SourceLocation = #_sourceLocation,
    _ matches: (RequestError) -> Bool
  ) {
    let before = picture(machine)
    do throws(RequestError) {
      try machine.control.perform(request)
      Issue.record("the request was carried out", sourceLocation: location)
    } catch {
      #expect(matches(error), "\(error)", sourceLocation: location)
    }
    #expect(picture(machine) == before, sourceLocation: location)
  }

  private func disk(_ id: String, over node: String) -> MachineRequest {
    .addDevice(
      DeviceDescription(
        VirtioBlockOptions.self,
        [PropertyAssignment(name: "id", value: id), PropertyAssignment(name: "drive", value: node)]))
  }

  /// Returns whether another program could write the image.
  private func isFree() throws -> Bool {
    let file = try ScatteredFile(
      opening: image, readOnly: false, memory: try GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
    return (try? file.lock()) != nil
  }

  /// Removes a device. On this bus it leaves at once. When it is no longer listed, its backends are free.
  private func removeDevice(_ name: String, from machine: RunningMachine) throws {
    try machine.control.perform(.removeDevice(name, isSurprise: false))
    #expect(eventually { !machine.devices.contains { $0.id?.text == name } })
  }

  @Test func `a node is added, serves a disk, and is removed after the disk`() throws {
    try run { machine in
      let control = machine.control
      let start = picture(machine)
      try control.perform(.addNode(BlockNode(id: "f", path: image, driver: .file)))
      try control.perform(.addNode(BlockNode(id: "r", path: "", underlying: "f")))
      #expect(machine.inspection.blockNodes.map(\.node.path) == [image, image])
      #expect(machine.inspection.blockNodes.map(\.size) == [8192, 8192])
      // The image is locked while a device uses it.
      #expect(try isFree())
      try control.perform(disk("d", over: "r"))
      #expect(try !isFree())
      #expect(machine.inspection.blockNodes.map(\.users) == [[], ["/machine/peripheral/d"]])
      refused(.removeNode("r"), by: machine) { if case .backend(.nodeInUse("r", .device)) = $0 { true } else { false } }
      refused(.removeNode("f"), by: machine) { if case .backend(.nodeInUse("f", .node)) = $0 { true } else { false } }
      refused(disk("e", over: "r"), by: machine) { if case .refused(_, .nodeInUse) = $0 { true } else { false } }
      refused(disk("e", over: "f"), by: machine) { if case .refused(_, .nodeInUse) = $0 { true } else { false } }
      try removeDevice("d", from: machine)
      #expect(try eventually { try isFree() })
      try control.perform(.removeNode("r"))
      try control.perform(.removeNode("f"))
      #expect(picture(machine) == start)
    }
  }

  @Test func `a node with a wrong file, id or underlying node is refused and changes nothing`() throws {
    try run { machine in
      try machine.control.perform(.addNode(BlockNode(id: "ro", path: image, readOnly: true)))
      refused(.addNode(BlockNode(id: "n", path: folder + "/missing")), by: machine) {
        if case .failed(.file(_, let error)) = $0 { error.code == ENOENT } else { false }
      }
      refused(.addNode(BlockNode(id: "ro", path: image)), by: machine) {
        if case .node(.duplicateID("ro")) = $0 { true } else { false }
      }
      refused(.addNode(BlockNode(id: "n", path: "", underlying: "nix")), by: machine) {
        if case .node(.unknownUnderlying("nix", _)) = $0 { true } else { false }
      }
      refused(.addNode(BlockNode(id: "n", path: "", underlying: "ro")), by: machine) {
        if case .node(.underlyingReadOnly("ro")) = $0 { true } else { false }
      }
      refused(.removeNode("nix"), by: machine) { if case .backend(.noSuchNode) = $0 { true } else { false } }
      // Readers share a node, which stays in use until the last reader is removed.
      try machine.control.perform(disk("a", over: "ro"))
      try machine.control.perform(disk("b", over: "ro"))
      try removeDevice("b", from: machine)
      refused(.removeNode("ro"), by: machine) { if case .backend(.nodeInUse) = $0 { true } else { false } }
      try removeDevice("a", from: machine)
      try machine.control.perform(.removeNode("ro"))
    }
  }

  @Test func `a node over a passed file serves a disk, and releases the file when the node is removed`() throws {
    try run { machine in
      let control = machine.control
      weak var handedOver: PassedDescriptor?
      do {
        let file = PassedDescriptor(try FileDescriptor(opening: image, O_RDWR))
        handedOver = file
        // Nothing opens the file by its path.
        unlink(image)
        var node = BlockNode(id: "h", path: "/dev/fdset/0", driver: .file)
        node.file = file
        try control.perform(.addNode(node))
      }
      try control.perform(.addNode(BlockNode(id: "r", path: "", underlying: "h")))
      #expect(machine.inspection.blockNodes.map(\.size) == [8192, 8192])
      try control.perform(disk("d", over: "r"))
      try removeDevice("d", from: machine)
      #expect(machine.inspection.files(removedBy: .removeNode("r")) == [handedOver])
      try control.perform(.removeNode("r"))
      do {
        // The requester holds the file, so the machine's thread does not close it.
        let files = machine.inspection.files(removedBy: .removeNode("h"))
        try control.perform(.removeNode("h"))
        #expect(machine.inspection.blockNodes.isEmpty && files == [handedOver])
      }
      #expect(eventually { handedOver == nil })
    }
  }

  @Test func `objects are added and removed, except those that the machine or a device needs`() throws {
    var configuration = MachineConfiguration()
    var ram = MemoryBackendMemfdOptions()
    ram.id = try Identifier(text: "ram")
    ram.size = ByteCount(64 << 20)
    configuration.objects = [ram]
    try run(configuration) { machine in
      let control = machine.control
      var random = RNGRandomOptions()
      let id = try Identifier(text: "rng0")
      random.id = id
      random.path = folder + "/missing"
      refused(.addObject(random), by: machine) {
        if case .failed(.file(_, let error)) = $0 { error.code == ENOENT } else { false }
      }
      random.path = "/dev/urandom"
      try control.perform(.addObject(random))
      refused(.addObject(random), by: machine) { if case .backend(.duplicateObject) = $0 { true } else { false } }
      try control.perform(
        .addDevice(
          DeviceDescription(
            VirtioRNGOptions.self,
            [PropertyAssignment(name: "id", value: "r"), PropertyAssignment(name: "rng", value: "rng0")])))
      // As in QEMU, the device keeps its source.
      try control.perform(.removeObject(id))
      refused(.removeObject(id), by: machine) { if case .backend(.noSuchObject) = $0 { true } else { false } }
      try removeDevice("r", from: machine)
      refused(.removeObject(try Identifier(text: "ram")), by: machine) {
        if case .backend(.objectInUse) = $0 { true } else { false }
      }
      // A descriptor number that no client passed may be one of Nestling's own descriptors.
      var iommufd = IOMMUFDOptions()
      iommufd.id = try Identifier(text: "i0")
      iommufd.file = try DescriptorReference(text: "3")
      refused(.addObject(iommufd), by: machine) { if case .noDescriptor("3") = $0 { true } else { false } }
      iommufd.file = nil
      try control.perform(.addObject(iommufd))
      try control.perform(.removeObject(try Identifier(text: "i0")))
    }
  }

  @Test func `an iommufd object stays as long as a device uses it`() throws {
    let id = try Identifier(text: "i0")
    var object = IOMMUFDOptions()
    object.id = id
    let tree = DeviceTree()
    try tree.add(object, id: id)
    let device = try tree.admit(
      VFIOPCIOptions([
        PropertyAssignment(name: "host", value: "01:00.0"), PropertyAssignment(name: "iommufd", value: "i0"),
      ]))
    #expect(throws: BackendProblem.objectInUse(id)) { try tree.removeObject(id) }
    #expect(tree.release(device.identity) != nil)
    try tree.removeObject(id)
    #expect(throws: BackendProblem.noSuchObject(id)) { try tree.removeObject(id) }
  }
}
