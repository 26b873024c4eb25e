import Devices
import Glibc
import Hardware
import Linux
import PCI
import TestSupport
import Testing
import VTd

@testable import Machine

/// Checks the trace of devices that are added and removed.
@Suite struct HotplugTraceTests {
  private final class Recorder: TraceSink {
    let notes = Notes<(event: MachineTraceEvent?, arguments: [TraceArgument])>()
    func record(_ event: String, unit: String?, _ arguments: [TraceArgument]) {
      notes.add((MachineTraceEvent(rawValue: event), arguments))
    }
  }

  /// Runs a machine without a CPU, with a hotplug slot below `rp0` at 1.0.
  /// - Returns: The lines of the trace.
  private func run(
    _ pattern: String, _ way: HotplugWay = .acpi, _ body: (RunningMachine) throws -> Void
  ) throws -> [String] {
    let path = "/tmp/nestling-trace-\(UInt64.random(in: 0 ... .max)).log"
    defer { unlink(path) }
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.hotplugWay = way
    var port = PCIERootPortOptions()
    port.id = try Identifier(text: "rp0")
    port.function.address = RequesterID(bus: 0, device: 1, function: 0)
    configuration.devices = [port]
    var trace = TraceConfiguration()
    let isKnown = trace.add(matching: pattern)
    #expect(isKnown)
    trace.path = path
    configuration.trace = trace
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    try body(machine)
    machine.control.requestQuit(.monitorQuit)
    thread.join()
    let file = try FileDescriptor(opening: path, O_RDONLY)
    var text: [UInt8] = []
    while let more = try file.read(count: 65536), !more.isEmpty { text += more }
    return String(decoding: text, as: UTF8.self).split(separator: "\n").map(String.init)
  }

  private func add(_ id: String) -> MachineRequest {
    .addDevice(DeviceDescription(EduOptions.self, bus: "rp0", [PropertyAssignment(name: "id", value: id)]))
  }

  /// Replaces each duration by `ns` if it is below 60 seconds.
  private func withoutTimes(_ lines: [String]) -> [String] {
    lines.map { line in
      guard let place = line.firstRange(of: " ns=") else { return line }
      let nanoseconds = UInt64(line[place.upperBound...])
      return line[..<place.lowerBound] + (nanoseconds.map { $0 < 60_000_000_000 } == true ? " ns" : " wrong")
    }
  }

  @Test func `a device's life under ACPI hotplug is traced step by step, with durations`() throws {
    let lines = try run("*") { machine in
      let guest = machine.board
      func port(_ offset: UInt64) -> UInt16 { UInt16(BoardLayout.hotplugController + offset) }
      guest.writePort(port(0x10), 4, 0)
      try machine.control.perform(add("hot0"))
      _ = guest.readPort(port(0x00), 4)
      try machine.control.perform(.removeDevice("hot0", isSurprise: false))
      _ = guest.readPort(port(0x04), 4)
      guest.writePort(port(0x18), 4, 3)
      guest.writePort(port(0x1c), 4, 0x84)
      guest.writePort(port(0x08), 4, 1)
      #expect(eventually { machine.devices.count == 1 })
    }
    #expect(
      withoutTimes(lines) == [
        "device_admitted device=rp0 type=pcie-root-port", "device_built device=rp0 ns", "device_plugged device=rp0 ns",
        "device_admitted device=hot0 type=edu port=00:01.0", "device_built device=hot0 ns",
        "device_plugged device=hot0 ns", "pcie_cap_slot_event port=00:01.0 pds=1 button=0 presence=1 link=1",
        "acpi_pci_up_read bsel=0 val=1", "device_removal_requested device=hot0", "acpi_pci_unplug_request bsel=0",
        "acpi_pci_down_read bsel=0 val=1", "acpi_pci_ost bsel=0 source=0x3 status=0x84", "acpi_pci_eject_slot bsel=0",
        "pcie_cap_slot_event port=00:01.0 pds=0 button=0 presence=1 link=0",
        "device_left_bus device=hot0 surprise=0 ns", "device_drained device=hot0 ns", "device_released device=hot0 ns",
        "device_deleted device=hot0",
      ])
  }

  @Test func `the button, power and indicators of a native slot are traced`() throws {
    let lines = try run("pcie_*", .native) { machine in
      let port = try #require(machine.board.busRoutes.ports.first).function
      var express = Int(port.readConfiguration(offset: 0x34, width: .byte))
      while port.readConfiguration(offset: express, width: .byte) != 0x10 {
        express = Int(port.readConfiguration(offset: express + 1, width: .byte))
      }
      func control(_ value: UInt64) { port.writeConfiguration(offset: express + 0x18, width: .word, value: value) }
      func clear() { port.writeConfiguration(offset: express + 0x1a, width: .word, value: 0x1ff) }
      try machine.control.perform(add("hot0"))
      clear()
      control(0x2c0)  // power on, indicator blinks
      clear()
      control(0x1c0)  // on
      try machine.control.perform(.removeDevice("hot0", isSurprise: false))
      control(0x7c0)  // off
      #expect(eventually { machine.devices.count == 1 })
    }
    #expect(
      lines == [
        "pcie_cap_slot_event port=00:01.0 pds=1 button=0 presence=1 link=1",
        "pcie_cap_slot_write_config port=00:01.0 pds=1 pic=off->blink aic=off->off power=off->on",
        "pcie_cap_slot_event port=00:01.0 pds=1 button=0 presence=0 link=1",
        "pcie_cap_slot_write_config port=00:01.0 pds=1 pic=blink->on aic=off->off power=on->on",
        "pcie_cap_slot_event port=00:01.0 pds=1 button=1 presence=0 link=0",
        "pcie_cap_slot_write_config port=00:01.0 pds=1 pic=on->off aic=off->off power=on->off",
        "pcie_cap_slot_event port=00:01.0 pds=1 button=0 presence=0 link=1",
        "pcie_cap_slot_event port=00:01.0 pds=0 button=0 presence=1 link=0",
      ])
  }

  @Test func `a device that cannot be built is traced as given up, and a surprise removal as a surprise`() throws {
    let lines = try run("device_*") { machine in
      let path = "/tmp/nestling-entropy-\(UInt64.random(in: 0 ... .max))"
      close(open(path, O_CREAT | O_WRONLY, 0o600))
      try machine.control.perform(
        .addObject(
          try RNGRandomOptions([("id", "e"), ("filename", path)].map { PropertyAssignment(name: $0.0, value: $0.1) })))
      unlink(path)
      let assignments = [("id", "r"), ("rng", "e")].map { PropertyAssignment(name: $0.0, value: $0.1) }
      #expect(throws: RequestError.self) {
        try machine.control.perform(.addDevice(DeviceDescription(VirtioRNGOptions.self, bus: "rp0", assignments)))
      }
      try machine.control.perform(add("a"))
      try machine.control.perform(.removeDevice("a", isSurprise: true))
      #expect(eventually { machine.devices.count == 1 })
    }
    #expect(
      withoutTimes(lines).dropFirst(3) == [
        "device_admitted device=r type=virtio-rng-pci port=00:01.0", "device_given_up device=r",
        "device_admitted device=a type=edu port=00:01.0", "device_built device=a ns", "device_plugged device=a ns",
        "device_left_bus device=a surprise=1 ns", "device_drained device=a ns", "device_released device=a ns",
        "device_deleted device=a",
      ])
  }

  @Test func `an event that is off is not recorded, and its arguments are not computed`() {
    let recorder = Recorder()
    let trace = MachineTrace([.drained], sink: recorder)
    let count = SharedInteger()
    func arguments() -> [TraceArgument] {
      count.increment()
      return []
    }
    trace.record(.released, arguments())
    MachineTrace.off.record(.drained, arguments())
    #expect(count.value == 0 && recorder.notes.all.isEmpty)
    trace.record(.drained, arguments())
    #expect(count.value == 1 && recorder.notes.all.map(\.event) == [.drained])
  }
}
