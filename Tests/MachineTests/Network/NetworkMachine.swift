import Linux
import TestSupport
import Testing

@testable import Machine

/// Runs a machine without a CPU, with netdevs and devices, while `body` uses it.
func runNetworkMachine(
  _ netdevs: [any NetdevOptions], _ devices: [any DeviceOptions], chardevs: [any ChardevOptions] = [],
  sharesMemory: Bool = false,
  _ body: (RunningMachine, Notes<MachineNotice>) throws -> Void
) throws {
  var configuration = MachineConfiguration()
  configuration.accelerator = .qtest
  configuration.memory.size = 64 << 20
  configuration.memory.isShared = sharesMemory
  configuration.chardevs = chardevs
  configuration.netdevs = netdevs
  configuration.devices = devices
  let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
  machine.board.buses.set(LiveBus(name: "pcie.0", type: .pci, isHotpluggable: true))
  let notices = Notes<MachineNotice>()
  machine.control.addListener { notices.add($0) }
  nonisolated(unsafe) let running = machine
  let thread = try Thread(name: "machine") { _ = try? running.run() }
  #expect(eventually { machine.control.status == .running })
  let outcome = Result { try body(machine, notices) }
  machine.control.requestQuit(.monitorQuit)
  thread.join()
  try outcome.get()
}

/// Options of a `virtio-net-pci` with an id, on a netdev and with a device number on bus 0.
func networkCard(_ id: String, on netdev: String, device: UInt8 = 3) throws -> Machine.VirtioNetOptions {
  try VirtioNetOptions([
    PropertyAssignment(name: "id", value: id), PropertyAssignment(name: "netdev", value: netdev),
    PropertyAssignment(name: "addr", value: "0\(device).0"),
  ])
}
