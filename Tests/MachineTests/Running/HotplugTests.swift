import Hardware
import Linux
import PCI
import Synchronization
import TestSupport
import Testing

@testable import Machine

/// Adds and removes devices below root ports of a running machine without a CPU. The test acts as a guest's ACPI
/// methods do.
@Suite struct HotplugTests {
  /// Runs a machine with three ports: `rp0` at 1.0 and `rp1` at 2.0 with hotplug slots, and `fixed` at 3.0 without.
  private func run(
    _ more: [any DeviceOptions] = [], _ body: (RunningMachine, Guest, Notes<MachineNotice>) throws -> Void
  ) throws {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.devices =
      try ["rp0", "rp1", "fixed"].enumerated().map { number, name in
        var port = PCIERootPortOptions()
        port.id = try Identifier(text: name)
        port.slot = UInt16(number)
        port.function.address = RequesterID(bus: 0, device: UInt8(number + 1), function: 0)
        port.hotplug = name != "fixed"
        return port
      } + more
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    let log = Notes<MachineNotice>()
    machine.control.addListener { log.add($0) }
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    try body(machine, Guest(board: machine.board), log)
    machine.control.requestQuit(.monitorQuit)
    thread.join()
  }

  /// Acts as an operating system through the ports of the ACPI hotplug controller.
  private struct Guest {
    let board: Board

    private func port(_ offset: UInt64) -> UInt16 { UInt16(BoardLayout.hotplugController + offset) }

    /// Reads the state of a slot.
    /// - Returns: Whether a device was inserted, and whether its removal is requested.
    func look(_ slot: UInt64) -> (up: Bool, down: Bool) {
      board.writePort(port(0x10), 4, slot)
      return (board.readPort(port(0x00), 4) == 1, board.readPort(port(0x04), 4) == 1)
    }

    func eject(_ slot: UInt64) {
      board.writePort(port(0x10), 4, slot)
      board.writePort(port(0x08), 4, 1)
    }

    func report(_ slot: UInt64, source: UInt64, status: UInt64) {
      board.writePort(port(0x10), 4, slot)
      board.writePort(port(0x18), 4, source)
      board.writePort(port(0x1c), 4, status)
    }

    /// Returns vendor and device of function 0 below a port.
    func identity(below port: Int) throws -> UInt64 {
      let model = try #require(board.busRoutes.ports.first { Int($0.function.requester.id.device) == port })
      return model.bus.function(at: 0)?.readConfiguration(offset: 0, width: .doubleword) ?? 0xffff_ffff
    }
  }

  private static let edu: UInt64 = 0x11e8_1234
  private static let nothing: UInt64 = 0xffff_ffff

  private func add(_ id: String, on bus: String, _ type: any DeviceOptions.Type = EduOptions.self) -> MachineRequest {
    .addDevice(DeviceDescription(type, bus: bus, [PropertyAssignment(name: "id", value: id)]))
  }

  private func deleted(_ id: String) throws -> MachineNotice {
    .deviceDeleted(try Identifier(text: id), path: "/machine/peripheral/\(id)")
  }

  @Test func `a device is added and removed fifty times under one name, each time until the guest ejects it`() throws {
    try run { machine, guest, log in
      let before = machine.devices.map(\.identity)
      for round in 1...50 {
        try machine.control.perform(add("hot0", on: "rp0"))
        #expect(try guest.identity(below: 1) == Self.edu)
        #expect(guest.look(0) == (true, false))
        try machine.control.perform(.removeDevice("hot0", isSurprise: false))
        // The device stays until the guest ejects it.
        #expect(guest.look(0) == (false, true))
        #expect(try guest.identity(below: 1) == Self.edu && log.all.count == round - 1)
        guest.eject(0)
        #expect(try guest.identity(below: 1) == Self.nothing)
        #expect(eventually { log.all.count == round })
        #expect(machine.devices.map(\.identity) == before)
      }
      #expect(Set(log.all) == [try deleted("hot0")])
    }
  }

  @Test func `a device that the guest ejects without a request is deleted`() throws {
    try run { machine, guest, log in
      try machine.control.perform(add("a", on: "rp0"))
      try machine.control.perform(add("b", on: "rp1"))
      guest.eject(1)
      let gone = try deleted("b")
      #expect(eventually { log.all == [gone] })
      #expect(try guest.identity(below: 1) == Self.edu)
      // An empty slot has nothing to eject.
      guest.eject(1)
      #expect(machine.devices.compactMap(\.id?.text).contains("a") && log.all.count == 1)
    }
  }

  @Test func `a guest's reset keeps devices and completes requested removals`() throws {
    try run { machine, guest, log in
      try machine.control.perform(add("a", on: "rp0"))
      try machine.control.perform(add("b", on: "rp1"))
      try machine.control.perform(.removeDevice("b", isSurprise: false))
      machine.control.requestReset()
      let gone = try deleted("b")
      #expect(eventually { log.all.contains(gone) })
      #expect(try guest.identity(below: 1) == Self.edu && guest.identity(below: 2) == Self.nothing)
      // A guest that starts finds the devices by enumeration.
      #expect(guest.look(0) == (false, false) && guest.look(1) == (false, false))
      // The slot is free for another.
      try machine.control.perform(add("b", on: "rp1"))
      #expect(guest.look(1) == (true, false))
    }
  }

  @Test func `a surprise removal takes effect at once, and the slot's next device waits until the guest ejects`() throws
  {
    try run { machine, guest, log in
      try machine.control.perform(add("a", on: "rp0"))
      #expect(guest.look(0) == (true, false))
      try machine.control.perform(.removeDevice("a", isSurprise: true))
      #expect(try guest.identity(below: 1) == Self.nothing)
      let gone = try deleted("a")
      #expect(eventually { log.all == [gone] })
      let isAdded = SharedInteger()
      machine.control.ask(add("a", on: "rp0")) { error in isAdded.value = error == nil ? 1 : 2 }
      // A later device of another port does not wait.
      try machine.control.perform(add("b", on: "rp1"))
      #expect(isAdded.value == 0 && guest.look(0) == (false, true))
      guest.eject(0)
      #expect(eventually { isAdded.value == 1 })
      #expect(try guest.identity(below: 1) == Self.edu && log.all.count == 1)
    }
  }

  @Test func `while function 0 is absent, a function is removed at once, and its slot stays free`() throws {
    try run { machine, guest, log in
      func add(_ id: String, _ function: Int) -> MachineRequest {
        let values = [("id", id), ("addr", "0.\(function)"), ("multifunction", "on")]
        return .addDevice(
          DeviceDescription(
            EduOptions.self, bus: "rp0", values.map { PropertyAssignment(name: $0.0, value: $0.1) }))
      }
      try machine.control.perform(add("one", 1))
      #expect(try guest.identity(below: 1) == Self.nothing && guest.look(0) == (false, false))
      try machine.control.perform(.removeDevice("one", isSurprise: false))
      let gone = try deleted("one")
      #expect(eventually { log.all == [gone] })
      // Function 0 makes both functions visible, and the ejection removes both.
      try machine.control.perform(add("one", 1))
      try machine.control.perform(add("zero", 0))
      #expect(try guest.look(0) == (true, false) && guest.identity(below: 1) == Self.edu)
      try machine.control.perform(.removeDevice("one", isSurprise: false))
      #expect(guest.look(0) == (false, true))
      guest.eject(0)
      let both = Set([gone, try deleted("zero")])
      #expect(eventually { log.all.count == 3 } && Set(log.all.suffix(2)) == both)
    }
  }

  @Test func `a device that the host wants back is removed after the patience if the guest does not eject it`()
    throws
  {
    try run { machine, guest, log in
      for id in ["patient", "kept"] { try machine.control.perform(self.add(id, on: id == "kept" ? "rp1" : "rp0")) }
      _ = (guest.look(0), guest.look(1))
      func identity(_ id: String) throws -> DeviceIdentity {
        try #require(machine.devices.first { $0.id?.text == id }).identity
      }
      // The guest ejects the first device in time.
      machine.events.post(.hostRequest(try identity("patient"), patience: 60_000))
      #expect(eventually { guest.look(0) == (false, true) })
      guest.eject(0)
      let patient = try deleted("patient")
      #expect(eventually { log.all == [patient] })
      // The guest keeps the second device although the host repeats its request. The test moves the clock.
      machine.events.post(.hostRequest(try identity("kept"), patience: 50))
      machine.events.post(.hostRequest(try identity("kept"), patience: 60_000))
      #expect(eventually { guest.look(1) == (false, true) })
      // Requests are carried out in order: when this one is refused, the host's second request has been handled.
      refused(.removeDevice("none", isSurprise: false), by: machine) { _ in true }
      let clock = try #require(machine.board.clock as? SteppedClock)
      _ = clock.advance(to: clock.now + 49_000_000)
      refused(.removeDevice("none", isSurprise: false), by: machine) { _ in true }
      #expect(try guest.identity(below: 2) == Self.edu)
      _ = clock.advance(to: clock.now + 2_000_000)
      let kept = try deleted("kept")
      #expect(eventually { log.all == [patient, kept] })
      #expect(try guest.identity(below: 2) == Self.nothing)
    }
  }

  @Test func `a guest's refusal to release a device is reported, and the guest can be asked again`() throws {
    try run { machine, guest, log in
      try machine.control.perform(add("a", on: "rp0"))
      _ = guest.look(0)
      for round in 1...2 {
        try machine.control.perform(.removeDevice("a", isSurprise: false))
        #expect(guest.look(0) == (false, true))
        guest.report(0, source: 3, status: 1)
        #expect(log.all.count == 2 * round)
      }
      let id = try Identifier(text: "a")
      #expect(
        log.all.prefix(2) == [
          .deviceStatus(id, slot: "00:01.0", source: 3, status: 1), .unplugRefused(id, path: "/machine/peripheral/a"),
        ])
      // A reset does not remove a device that the guest kept.
      machine.control.requestReset()
      #expect(eventually { log.all.count == 5 })
      #expect(try guest.identity(below: 1) == Self.edu)
    }
  }

  /// Expects a refusal that changes nothing.
  private func refused(
    _ request: MachineRequest, by machine: RunningMachine, _ location: SourceLocation = #_sourceLocation,
    _ matches: (RequestError) -> Bool
  ) {
    func picture() -> [String] {
      machine.devices.map { "\($0.identity) \($0.path)" } + machine.inspection.functions.map { "\($0)" }
    }
    let before = picture()
    do throws(RequestError) {
      try machine.control.perform(request)
      Issue.record("it was carried out", sourceLocation: location)
    } catch {
      #expect(matches(error), "\(error)", sourceLocation: location)
    }
    #expect(picture() == before, sourceLocation: location)
  }

  @Test func `a device that cannot be added or removed is refused, and nothing changes`() throws {
    try run { machine, guest, log in
      try machine.control.perform(add("a", on: "rp0"))
      refused(add("a", on: "rp1"), by: machine) { if case .refused("edu", .duplicateID) = $0 { true } else { false } }
      refused(add("b", on: "rp0"), by: machine) { if case .refused("edu", .addressTaken) = $0 { true } else { false } }
      refused(add("b", on: "fixed"), by: machine) { if case .noHotplug("fixed") = $0 { true } else { false } }
      refused(add("b", on: "pcie.0"), by: machine) { if case .noHotplug("pcie.0") = $0 { true } else { false } }
      refused(add("b", on: "rp1", PCIERootPortOptions.self), by: machine) { _ in true }
      refused(.removeDevice("rp0", isSurprise: false), by: machine) {
        if case .noHotplug("pcie.0") = $0 { true } else { false }
      }
      refused(.removeDevice("b", isSurprise: true), by: machine) {
        if case .noSuchDevice("b") = $0 { true } else { false }
      }
      #expect(log.all.isEmpty)
    }
  }

  // MARK: A host that does not answer

  /// A device whose construction waits until the test opens the gate.
  private struct SlowOptions: PCIDeviceOptions, BoardDevice {
    static let gate = Mutex<Semaphore?>(nil)
    static let begun = SharedInteger()

    var id: Identifier?
    var function = PCIFunctionOptions()

    static let typeName = "slow"
    static let summary = "A device whose host is slow"
    static let category = DeviceCategory.misc
    static let properties: [Property<Self>] =
      [Property("fails", \.fails, help: "")] + PCIFunctionOptions.properties.map { $0.within(\.function) }
    var fails = false

    func build(
      _ device: Device, on board: Board, with configuration: MachineConfiguration
    ) throws(StartError) -> [Function] {
      Self.begun.increment()
      Self.gate.withLock { $0 }?.wait()
      if fails { throw .system(.init("open", "slow", code: 5)) }
      var options = EduOptions()
      options.function = function
      return options.build(device, on: board, with: configuration)
    }
  }

  @Test func `a device under construction delays neither requests nor resets, and can fail or be cancelled`() throws {
    let gate = Semaphore()
    SlowOptions.gate.withLock { $0 = gate }
    SlowOptions.begun.value = 0
    let answers = Notes<String>()
    try run { machine, guest, log in
      func ask(_ id: String, on bus: String, fails: Bool = false) {
        let values = [("id", id), ("fails", fails ? "on" : "off")]
        machine.control.ask(
          .addDevice(
            DeviceDescription(SlowOptions.self, bus: bus, values.map { PropertyAssignment(name: $0.0, value: $0.1) }))
        ) { error in
          switch error {
          case nil: answers.add("\(id) added")
          case .ended: answers.add("\(id) ended")
          default: answers.add("\(id) failed")
          }
        }
      }
      ask("a", on: "rp0")
      #expect(eventually { SlowOptions.begun.value == 1 })
      // The device is not present yet, but its id and its slot are taken.
      #expect(machine.devices.compactMap(\.id?.text) == ["rp0", "rp1", "fixed"])
      refused(add("a", on: "rp1"), by: machine) { if case .refused("edu", .duplicateID) = $0 { true } else { false } }
      machine.control.requestReset()
      #expect(eventually { log.all == [.reset(.monitorReset)] })
      try machine.control.perform(.pause)
      try machine.control.perform(.resume)
      ask("b", on: "rp1", fails: true)
      gate.signal()
      #expect(eventually { answers.all == ["a added"] })
      #expect(guest.look(0) == (true, false))
      gate.signal()
      #expect(eventually { answers.all == ["a added", "b failed"] })
      #expect(machine.devices.compactMap(\.id?.text) == ["rp0", "rp1", "fixed", "a"])
      // The machine ends while the device is under construction.
      ask("b", on: "rp1")
      #expect(eventually { SlowOptions.begun.value == 3 })
    }
    gate.signal()
    #expect(eventually { answers.all == ["a added", "b failed", "b ended"] })
  }
}
