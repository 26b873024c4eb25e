import Devices
import Glibc
import Hardware
import Linux
import PCI
import TestSupport
import Testing

@testable import Machine

/// Resizes images of a running machine without a CPU.
@Suite struct ResizeTests {
  private let image = "/tmp/nestling-resize-\(getpid())-\(UInt32.random(in: 0 ... .max))"

  init() throws {
    try FileDescriptor(opening: image, O_WRONLY | O_CREAT, mode: 0o600).write([UInt8](repeating: 0, count: 8192))
  }

  private func run(_ body: (RunningMachine) throws -> Void) throws {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.blockNodes = [
      BlockNode(id: "f", path: image, driver: .file), BlockNode(id: "r", path: image, underlying: "f"),
    ]
    var disk = Machine.VirtioBlockOptions()
    disk.drive = "r"
    disk.function.address = RequesterID(bus: 0, device: 3, function: 0)
    configuration.devices = [disk]
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    try body(machine)
    machine.control.requestQuit(.monitorQuit)
    thread.join()
    unlink(image)
  }

  /// A driver that has placed the disk's BAR and started the device.
  private struct Driver {
    let board: Board
    let base: UInt64 = 0xd000_0000

    init(_ board: Board) {
      self.board = board
      let configuration = BoardLayout.configurationAccess + UInt64(3 << 3) << 12
      board.writeMemory(configuration + 0x20, 4, base)
      board.writeMemory(configuration + 0x24, 4, 0)
      board.writeMemory(configuration + 4, 2, 6)
      for status in [1, 3] as [UInt64] { board.writeMemory(base + 0x14, 1, status) }
      // VIRTIO_F_VERSION_1
      board.writeMemory(base + 0x08, 4, 1)
      board.writeMemory(base + 0x0c, 4, 1)
      for status in [0xb, 0xf] as [UInt64] { board.writeMemory(base + 0x14, 1, status) }
    }

    var status: UInt64 { board.readMemory(base + 0x14, 1) }
    var generation: UInt64 { board.readMemory(base + 0x15, 1) }
    /// Reads and thereby clears the ISR status; bit 1 is a change of the configuration.
    func takeInterrupts() -> UInt64 { board.readMemory(base + 0x1000, 1) }
    /// The capacity in sectors.
    var capacity: UInt64 { board.readMemory(base + 0x2000, 8) }
  }

  private var fileSize: Int {
    var status = stat()
    return stat(image, &status) == 0 ? status.st_size : -1
  }

  @Test func `an interrupt reports to a disk's driver that the image has grown or shrunk`() throws {
    try run { machine in
      let driver = Driver(machine.board)
      #expect(driver.status == 0xf && driver.capacity == 16 && driver.takeInterrupts() == 0)
      var generation = driver.generation
      for (node, size) in [("r", 1 << 20), ("f", 4096), ("r", 0), ("f", 12288)] as [(String, UInt64)] {
        try machine.control.perform(.resizeNode(node, to: size))
        #expect(driver.capacity == size / 512 && fileSize == Int(size))
        #expect(driver.takeInterrupts() == 2 && driver.takeInterrupts() == 0)
        #expect(driver.generation != generation)
        generation = driver.generation
      }
      #expect(machine.inspection.blockNodes.map(\.size) == [12288, 12288])
    }
  }

  private func refused(
    _ node: String, _ size: UInt64, by machine: RunningMachine, _ location: SourceLocation = #_sourceLocation,
    _ matches: (RequestError) -> Bool
  ) {
    do throws(RequestError) {
      try machine.control.perform(.resizeNode(node, to: size))
      Issue.record("it was carried out", sourceLocation: location)
    } catch {
      #expect(matches(error), "\(error)", sourceLocation: location)
    }
  }

  @Test func `an image that cannot change its size keeps it, and its disk sends no interrupt`() throws {
    try run { machine in
      let driver = Driver(machine.board)
      try machine.control.perform(.addNode(BlockNode(id: "ro", path: image, readOnly: true, driver: .file)))
      refused("ro", 4096, by: machine) { if case .readOnlyNode("ro") = $0 { true } else { false } }
      refused("nix", 4096, by: machine) { if case .backend(.noSuchNode("nix")) = $0 { true } else { false } }
      refused("r", .max, by: machine) { if case .notResized(let error) = $0 { error.code == EFBIG } else { false } }
      // The image's lock treats a second node on the same file like another program.
      try machine.control.perform(.addNode(BlockNode(id: "again", path: image, driver: .file)))
      refused("again", 4096, by: machine) {
        if case .failed(.imageInUse) = $0 { true } else { false }
      }
      #expect(driver.capacity == 16 && driver.takeInterrupts() == 0 && fileSize == 8192)
    }
  }

  @Test func `a node without a disk is resized as well`() throws {
    try run { machine in
      let other = image + ".other"
      defer { unlink(other) }
      try FileDescriptor(opening: other, O_WRONLY | O_CREAT, mode: 0o600).write([1])
      try machine.control.perform(.addNode(BlockNode(id: "o", path: other, driver: .file)))
      try machine.control.perform(.resizeNode("o", to: 65536))
      #expect(machine.inspection.blockNodes.last?.size == 65536)
    }
  }

  @Test func `a disk writes nothing beyond the current end of its image`() throws {
    let memory = try GuestMemory(size: 0x40_0000, lowLimit: 0x20_0000)
    let file = try ScatteredFile(opening: image, readOnly: false, memory: memory)
    unlink(image)
    let backend = FileBackend(file, discardUnmaps: true)
    backend.setSize(4096)
    try file.resize(to: 4096)
    let segment = [PhysicalSegment(address: 0, count: 512)]
    try backend.write(at: 3584, from: segment)
    #expect(throws: BlockError.inputOutput) { try backend.write(at: 3585, from: segment) }
    #expect(throws: BlockError.inputOutput) { try backend.write(at: 4096, from: segment) }
    #expect(throws: BlockError.inputOutput) { try backend.writeZeroes(4096..<8192, mayUnmap: false) }
    #expect(throws: BlockError.inputOutput) { try backend.discard(4096..<8192) }
    #expect(try file.currentSize == 4096)
    backend.setSize(8192)
    try backend.write(at: 4096, from: segment)
  }
}
