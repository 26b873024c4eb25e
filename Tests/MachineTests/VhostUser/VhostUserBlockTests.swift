import Hardware
import Linux
import PCI
import TestSupport
import Testing

@testable import Machine

/// A machine without a CPU, whose disk QEMU's storage daemon serves. The test acts as a guest's driver.
@Suite("a disk over vhost-user", .enabled(if: StorageDaemon.isInstalled), .timeLimit(.minutes(5)))
struct VhostUserBlockTests {
  private static let address = RequesterID(bus: 0, device: 4, function: 0)

  private func configuration(_ daemon: StorageDaemon, disk: Bool = true) throws -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    var chardev = SocketChardevOptions()
    chardev.id = try Identifier(text: "c0")
    chardev.path = daemon.socket
    // Connect when the device is built.
    chardev.reconnect = 1
    configuration.chardevs = [chardev]
    var port = PCIERootPortOptions()
    port.id = try Identifier(text: "rp0")
    configuration.devices = [port]
    if disk {
      var options = VhostUserBlockOptions()
      options.chardev = chardev.id
      options.function.address = Self.address
      configuration.devices.append(options)
    }
    return configuration
  }

  private func run(
    _ configuration: MachineConfiguration, _ body: (RunningMachine) throws -> Void
  ) throws {
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    defer {
      machine.control.requestQuit(.monitorQuit)
      thread.join()
    }
    try body(machine)
  }

  @Test func `the driver reads sectors, before and after a reset, and the daemon's death costs the device only`() throws
  {
    let daemon = StorageDaemon()
    try #require(daemon.start())
    try run(try configuration(daemon)) { machine in
      let driver = VirtioTestDriver(machine.board, Self.address)
      #expect(driver.read(configuration: 0) == 0x1042_1af4)
      #expect(driver.configuration(0) == 2048)
      #expect(machine.chardevs.all.map(\.endpointName) == ["unix:\(daemon.socket)"])
      driver.start()
      driver.request(sector: 77)
      #expect(eventually { driver.usedIndex == 1 && driver.sector == 77 })
      driver.status = 0
      #expect(eventually { driver.isReset })
      driver.start()
      driver.request(sector: 1234)
      #expect(eventually { driver.usedIndex == 1 && driver.sector == 1234 })

      daemon.kill()
      // DEVICE_NEEDS_RESET
      #expect(eventually { driver.status & 0x40 != 0 })
      #expect(eventually { machine.chardevs.all.map(\.endpointName) == ["disconnected:unix:\(daemon.socket)"] })
      #expect(driver.configuration(0) == 2048)
      driver.status = 0
      #expect(eventually { driver.isReset })
      // The driver's next session begins when the daemon is back.
      driver.start()
      driver.request(sector: 5)
      try #require(daemon.start())
      #expect(eventually { driver.usedIndex == 1 && driver.sector == 5 })
    }
  }

  @Test func `a hotplugged disk needs shared RAM, and comes and goes with its chardev`() throws {
    let daemon = StorageDaemon()
    try #require(daemon.start())
    let add = MachineRequest.addDevice(
      DeviceDescription(
        VhostUserBlockOptions.self, bus: "rp0",
        [PropertyAssignment(name: "id", value: "d0"), PropertyAssignment(name: "chardev", value: "c0")]))
    var configuration = try configuration(daemon, disk: false)
    try run(configuration) { machine in
      let problem = VhostUserProblem(typeName: "vhost-user-blk-pci", reason: .privateMemory)
      do throws(RequestError) {
        try machine.control.perform(add)
        Issue.record("the disk was added")
      } catch {
        guard case .failed(.vhostUser(problem)) = error else { throw error }
      }
      #expect(machine.devices.allSatisfy { $0.id?.text != "d0" })
    }
    configuration.memory.isShared = true
    try run(configuration) { machine in
      for _ in 0..<3 {
        try machine.control.perform(add)
        #expect(throws: Chardevs.Problem.inUse("c0")) { try machine.chardevs.remove("c0") }
        try machine.control.perform(.removeDevice("d0", isSurprise: true))
        #expect(
          eventually {
            machine.chardevs.all.first?.hasFrontend == false && machine.devices.allSatisfy { $0.id?.text != "d0" }
          })
        // The slot is free when the guest has noticed the removal.
        machine.board.writePort(UInt16(BoardLayout.hotplugController + 0x10), 4, 0)
        machine.board.writePort(UInt16(BoardLayout.hotplugController + 0x08), 4, 1)
      }
    }
  }

  @Test func `a disk behind the IOMMU is refused, because the daemon does not translate`() throws {
    let daemon = StorageDaemon()
    try #require(daemon.start())
    var configuration = try configuration(daemon, disk: false)
    var options = VhostUserBlockOptions()
    options.chardev = try Identifier(text: "c0")
    options.transport.iommuPlatform = true
    configuration.devices += [IntelIOMMUOptions(), options]
    let problem = VhostUserProblem(typeName: "vhost-user-blk-pci", reason: .noTranslation)
    #expect(throws: StartError.vhostUser(problem)) {
      _ = try RunningMachine(configuration, interpreter: PassingInterpreter())
    }
  }

  @Test func `a missing back end is an error of the start`() throws {
    let daemon = StorageDaemon()
    let error = SystemError("connect", daemon.socket, code: 2)
    let problem = VhostUserProblem(typeName: "vhost-user-blk-pci", reason: .backEnd(.system(error)))
    #expect(throws: StartError.vhostUser(problem)) {
      _ = try RunningMachine(try configuration(daemon), interpreter: PassingInterpreter())
    }
  }
}

extension VirtioTestDriver {
  /// Requests a sector: struct virtio_blk_req, virtio 1.2, 5.2.6.
  fileprivate func request(sector: UInt64) {
    submit([UInt8](littleEndian: UInt64(0), sector), answer: 513)
  }

  /// The first word of the answer, after the driver has found it complete: the last byte is the status.
  fileprivate var sector: UInt32? { answer(513)[512] == 0 ? answer(4).load(UInt32.self, at: 0) : nil }
}
