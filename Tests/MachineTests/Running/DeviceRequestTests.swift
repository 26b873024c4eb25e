import Hardware
import Linux
import PCI
import TestSupport
import Testing

@testable import Machine

/// Adds and removes devices of a running machine without a CPU, as monitors do.
@Suite struct DeviceRequestTests {
  /// The state that a refusal must leave unchanged.
  private struct Picture: Equatable {
    let devices: [DeviceIdentity]
    let paths: [String]
    let functions: [RequesterID]
    let status: MachineStatus
  }

  private func picture(_ machine: RunningMachine) -> Picture {
    Picture(
      devices: machine.devices.map(\.identity), paths: machine.devices.map(\.path),
      functions: machine.inspection.functions.map(\.address), status: machine.control.status)
  }

  private func run(_ body: (RunningMachine, Notes<MachineNotice>) throws -> Void) throws {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    var cold = EduOptions()
    cold.id = try Identifier(text: "c0")
    var port = PCIERootPortOptions()
    port.id = try Identifier(text: "rp0")
    port.hotplug = false
    var below = EduOptions()
    below.id = try Identifier(text: "c1")
    below.function.bus = "rp0"
    configuration.devices = [cold, port, below]
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    let log = Notes<MachineNotice>()
    machine.control.addListener { log.add($0) }
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    try body(machine, log)
    machine.control.requestQuit(.monitorQuit)
    thread.join()
  }

  /// Runs a machine whose root bus accepts devices, like the bus of a root port.
  private func runWithHotplug(_ body: (RunningMachine, Notes<MachineNotice>) throws -> Void) throws {
    try run { machine, log in
      machine.board.buses.set(LiveBus(name: "pcie.0", type: .pci, isHotpluggable: true))
      try body(machine, log)
    }
  }

  private func add(
    _ type: any DeviceOptions.Type, bus: String? = nil, _ values: KeyValuePairs<String, String> = [:]
  ) -> MachineRequest {
    .addDevice(DeviceDescription(type, bus: bus, values.map { PropertyAssignment(name: $0.key, value: $0.value) }))
  }

  /// Expects a refusal that changes nothing.
  private func refused(
    _ request: MachineRequest, by machine: RunningMachine, _ location: SourceLocation = #_sourceLocation,
    _ matches: (RequestError) -> Bool
  ) {
    let before = picture(machine)
    do throws(RequestError) {
      try machine.control.perform(request)
      Issue.record("it was carried out", sourceLocation: location)
    } catch {
      #expect(matches(error), "\(error)", sourceLocation: location)
    }
    #expect(picture(machine) == before, sourceLocation: location)
  }

  @Test func `a bus without hotplug neither accepts nor releases a device, and a refusal changes nothing`() throws {
    try run { machine, log in
      refused(add(EduOptions.self), by: machine) { if case .noHotplug("pcie.0") = $0 { true } else { false } }
      // Like QEMU, the refusal names the bus rather than the wrong property.
      refused(add(EduOptions.self, bus: "pcie.0", ["nosuch": "1"]), by: machine) {
        if case .noHotplug("pcie.0") = $0 { true } else { false }
      }
      refused(add(EduOptions.self, bus: "rp9"), by: machine) { if case .noSuchBus("rp9") = $0 { true } else { false } }
      refused(add(EduOptions.self, bus: "isa.0"), by: machine) {
        if case .wrongBus("edu", .isa) = $0 { true } else { false }
      }
      refused(add(DebugExitOptions.self), by: machine) { if case .noHotplug("isa.0") = $0 { true } else { false } }
      refused(add(IntelIOMMUOptions.self), by: machine) { if case .notPluggable = $0 { true } else { false } }
      for name in ["c0", "/machine/peripheral/c0"] {
        refused(.removeDevice(name, isSurprise: false), by: machine) {
          if case .noHotplug("pcie.0") = $0 { true } else { false }
        }
      }
      // A root port has its own bus.
      refused(add(EduOptions.self, bus: "rp0"), by: machine) { if case .noHotplug("rp0") = $0 { true } else { false } }
      refused(.removeDevice("c1", isSurprise: false), by: machine) {
        if case .noHotplug("rp0") = $0 { true } else { false }
      }
      refused(.removeDevice("rp0", isSurprise: false), by: machine) {
        if case .noHotplug("pcie.0") = $0 { true } else { false }
      }
      refused(.removeDevice("x", isSurprise: false), by: machine) {
        if case .noSuchDevice("x") = $0 { true } else { false }
      }
      #expect(log.all.isEmpty)
    }
  }

  @Test func `a device with a wrong id, address, property or backend is refused and changes nothing`() throws {
    try runWithHotplug { machine, log in
      refused(add(EduOptions.self, ["id": "c0"]), by: machine) {
        if case .refused("edu", .duplicateID) = $0 { true } else { false }
      }
      refused(add(EduOptions.self, ["addr": "1"]), by: machine) {
        if case .refused("edu", .addressTaken) = $0 { true } else { false }
      }
      refused(add(EduOptions.self, ["nosuch": "1"]), by: machine) {
        if case .property("edu", .unknown) = $0 { true } else { false }
      }
      refused(add(EduOptions.self, ["dma_mask": "on"]), by: machine) {
        if case .property("edu", .value) = $0 { true } else { false }
      }
      refused(add(VirtioBlockOptions.self, ["drive": "nix"]), by: machine) {
        if case .refused("virtio-blk-pci", .unknownNode) = $0 { true } else { false }
      }
      refused(add(VirtioRNGOptions.self, ["rng": "nix"]), by: machine) {
        if case .refused("virtio-rng-pci", .unknownObject) = $0 { true } else { false }
      }
      // The ids and addresses of refused devices are free.
      try machine.control.perform(add(EduOptions.self, ["id": "e1", "addr": "5"]))
      #expect(log.all.isEmpty)
    }
  }

  @Test func `the CPUs are not stopped to add or remove a device`() throws {
    let queue = try EventQueue()
    let halts = SharedInteger()
    queue.onPost { halts.increment() }
    for request in [add(EduOptions.self), .removeDevice("x", isSurprise: false), .resume] {
      queue.post(.request(PendingRequest(request)))
    }
    #expect(halts.value == 0)
    queue.post(.request(PendingRequest(.pause)))
    #expect(halts.value == 1)
  }
}
