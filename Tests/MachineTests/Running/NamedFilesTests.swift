import Glibc
import Linux
import TestSupport
import Testing

@testable import Machine

/// Checks how the start of a machine opens and locks the files that options name.
@Suite("Files that options name")
struct NamedFilesTests {
  private let folder = "/tmp/nestling-files-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private var image: String { folder + "/disk" }
  private var missing: String { folder + "/missing" }

  init() throws {
    mkdir(folder, 0o700)
    try FileDescriptor(opening: image, O_WRONLY | O_CREAT, mode: 0o600).write([UInt8](repeating: 0, count: 4096))
  }

  private func configuration(
    _ nodes: [BlockNode], disks: [String] = [], objects: [any ObjectOptions] = []
  ) -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 16 << 20
    configuration.blockNodes = nodes
    configuration.objects = objects
    configuration.devices = disks.map { id in
      var device = VirtioBlockOptions()
      device.drive = id
      return device
    }
    return configuration
  }

  /// Returns the error of the start, or nil if there is none.
  private func problem(_ configuration: MachineConfiguration) -> String? {
    do {
      let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
      machine.control.requestQuit(.monitorQuit)
      _ = try machine.run()
      return nil
    } catch {
      return "\(error)"
    }
  }

  @Test("a missing file stops the start even if no device uses it")
  func unused() throws {
    let absent = BlockNode(id: "a", path: missing)
    #expect(problem(configuration([absent])) == "-drive: \(missing): No such file or directory")
    var source = RNGRandomOptions()
    source.id = try Identifier(text: "r")
    source.path = missing
    #expect(
      problem(configuration([], objects: [source])) == "-object rng-random: \(missing): No such file or directory")
    source.path = "/dev/urandom"
    #expect(problem(configuration([BlockNode(id: "a", path: image)], objects: [source])) == nil)
  }

  @Test("an image has one writer, within one machine and across two")
  func writers() throws {
    let inUse = "-drive: \(image): Failed to get \"write\" lock: is the image in use, by another process or option?"
    let nodes = [BlockNode(id: "a", path: image), BlockNode(id: "b", path: image)]
    #expect(problem(configuration(nodes, disks: ["a", "b"])) == inUse)
    // The failed start left no lock behind, and a node without a device takes none. The test waits because a child
    // process that another test starts keeps the lock until its exec closes the file.
    #expect(eventually { problem(configuration(nodes, disks: ["a"])) == nil })
    let other = try ScatteredFile(
      opening: image, readOnly: false, memory: try GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
    #expect(eventually { (try? other.lock()) != nil })
    #expect(problem(configuration(nodes, disks: ["a"])) == inUse)
    #expect(problem(configuration(nodes)) == nil)
    let reader = BlockNode(id: "a", path: image, readOnly: true)
    #expect(
      problem(configuration([reader], disks: ["a"]))
        == "-drive: \(image): Failed to get shared \"write\" lock: is the image in use, by another process or option?")
    let unlocked = nodes.map { BlockNode(id: $0.id, path: $0.path, locking: .off) }
    #expect(problem(configuration(unlocked, disks: ["a", "b"])) == nil)
    withExtendedLifetime(other) {}
  }

  @Test("readers share an image")
  func readers() {
    let nodes = ["a", "b"].map { BlockNode(id: $0, path: image, readOnly: true) }
    #expect(problem(configuration(nodes, disks: ["a", "b"])) == nil)
  }
}
