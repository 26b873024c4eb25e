import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// Runs a machine without CPUs from its start to its end. Its thread carries out what devices of the host and monitors
/// request.
@Suite struct MachineEventTests {
  /// Runs a machine on its own thread during the body, then ends it.
  /// - Parameter body: Gets the machine and a function that returns the notices so far.
  private func run(_ devices: [any DeviceOptions], _ body: (RunningMachine, () -> [MachineNotice]) throws -> Void)
    throws
  {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.devices = devices
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    let log = Notes<MachineNotice>()
    machine.control.addListener { log.add($0) }
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    try body(machine) { log.all }
    machine.control.requestQuit(.monitorQuit)
    thread.join()
    #expect(machine.control.status == .shutdown)
  }

  @Test("a surprise removal deletes a device of a running machine, once")
  func aDeviceIsTakenAwayWhileTheMachineRuns() throws {
    var named = EduOptions()
    named.id = try Identifier(text: "edu0")
    try run([named, EduOptions(), EduOptions()]) { machine, log in
      let all = machine.inspection.functions.map(\.address)
      let addresses = (1...3).map { RequesterID(bus: 0, device: $0, function: 0) }
      let identities = machine.devices.map(\.identity)
      machine.events.post(.surpriseRemoval(identities[0]))
      machine.events.post(.surpriseRemoval(identities[2]))
      // This device is already gone.
      machine.events.post(.surpriseRemoval(identities[2]))
      #expect(eventually { log().count == 2 })
      #expect(
        log() == [
          .deviceDeleted(named.id, path: "/machine/peripheral/edu0"),
          .deviceDeleted(nil, path: "/machine/peripheral-anon/device[1]"),
        ])
      #expect(machine.control.status == .running)
      #expect(machine.inspection.functions.map(\.address) == all.filter { $0 != addresses[0] && $0 != addresses[2] })
      machine.control.requestReset()
      // Events are handled in order: a notice of the repeated removal would precede this one.
      #expect(eventually { log().last == .reset(.monitorReset) } && log().count == 3)
      #expect(machine.control.status == .running)
    }
  }

  @Test func `a guest's reset ends the machine once a monitor has set that reboot action`() throws {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    let endings = Notes<RunningMachine.Ending>()
    let notices = Notes<MachineNotice>()
    machine.control.addListener { notices.add($0) }
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { if let ending = try? running.run() { endings.add(ending) } }
    #expect(eventually { machine.control.status == .running })
    machine.events.post(.reset)
    #expect(eventually { notices.all == [.reset(.guestReset)] })
    try machine.control.perform(.setRebootAction(.shutdown))
    try machine.control.perform(.setRebootAction(.reset))
    machine.events.post(.reset)
    #expect(eventually { notices.all.count == 2 })
    try machine.control.perform(.setRebootAction(.shutdown))
    // A monitor's reset does not count as the guest's.
    machine.control.requestReset()
    #expect(eventually { notices.all.last == .reset(.monitorReset) })
    machine.events.post(.reset)
    #expect(eventually { endings.all == [.shutdown] })
    #expect(notices.all.last == .shutdown(.guestReset))
    machine.control.requestQuit(.monitorQuit)
    thread.join()
  }

  @Test func `the machine lists its chips, its RAM and the placed BARs by address space`() throws {
    try run([EduOptions()]) { machine, _ in
      let spaces = machine.inspection.addressSpaces
      #expect(spaces.map(\.name) == ["memory", "I/O"])
      let memory = spaces[0].regions
      #expect(memory.first?.name == "ram-below-4g" && memory.first?.last == 0x3ff_ffff)
      #expect(memory.contains { $0.name == "ioapic" && $0.first == 0xfec0_0000 && $0.last == 0xfec0_0fff })
      #expect(!memory.contains { $0.isMovable })
      #expect(spaces[1].regions.contains { $0.name == "rtc" && $0.first == 0x70 })
      let configuration = BoardLayout.configurationAccess + UInt64(1 << 3) << 12
      machine.board.writeMemory(configuration + 0x10, 4, 0xc000_0000)
      machine.board.writeMemory(configuration + 4, 2, 2)
      let bars = machine.inspection.addressSpaces[0].regions.filter(\.isMovable)
      #expect(bars.map(\.name) == ["edu 00:01.0 BAR0"] && bars.first?.first == 0xc000_0000)
      #expect(bars.first?.last == 0xc00f_ffff)
    }
  }

  /// As in QEMU's RUN_STATE_INTERNAL_ERROR, only a reset leaves this state.
  @Test("a device error stops the machine until a reset")
  func anErrorOfADeviceStopsTheMachine() throws {
    try run([]) { machine, log in
      machine.events.post(.deviceError)
      #expect(eventually { log() == [.paused] })
      #expect(machine.control.status == .internalError)
      #expect { try machine.control.perform(.resume) } throws: {
        if case .needsReset? = $0 as? RequestError { true } else { false }
      }
      try machine.control.perform(.pause)
      #expect(machine.control.status == .internalError)
      machine.control.requestReset()
      #expect(eventually { machine.control.status == .prelaunch })
      #expect(log() == [.paused, .reset(.monitorReset)])
      try machine.control.perform(.resume)
      #expect(machine.control.status == .running)
      // An error during a monitor's pause changes nothing.
      try machine.control.perform(.pause)
      machine.events.post(.deviceError)
      try machine.control.perform(.resume)
      #expect(log() == [.paused, .reset(.monitorReset), .resumed, .paused, .resumed])
    }
  }

  @Test func `a request is answered after its notice, and at the end all open requests are answered`() throws {
    let held = Semaphore()
    let reached = Semaphore()
    let answers = Notes<RequestError?>()
    var control: (any MachineControl)?
    try run([]) { machine, log in
      control = machine.control
      for _ in 0..<20 {
        try machine.control.perform(.pause)
        #expect(log().last == .paused && machine.control.status == .paused)
        try machine.control.perform(.resume)
        #expect(log().last == .resumed && machine.control.status == .running)
      }
      // The machine's thread is busy. Meanwhile a monitor sends a request and the end is requested.
      machine.control.addListener {
        if case .reset = $0 {
          reached.signal()
          held.wait()
        }
      }
      machine.control.requestReset()
      reached.wait()
      machine.control.ask(.pause) { answers.add($0) }
      machine.control.requestQuit(.monitorQuit)
      #expect(answers.all.isEmpty)
      held.signal()
    }
    func isEnded(_ error: (any Error)??) -> Bool { if case .ended?? = error as? RequestError?? { true } else { false } }
    #expect(answers.all.count == 1 && isEnded(answers.all.first))
    #expect { try control?.perform(.pause) } throws: { isEnded($0) }
  }
}
