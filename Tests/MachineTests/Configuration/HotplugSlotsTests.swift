import Hardware
import Testing

@testable import Machine

@Suite struct HotplugSlotsTests {
  @Test func `hotplug slots are those of the ports, in the order of their addresses`() throws {
    var configuration = MachineConfiguration()
    for (address, slot) in [("6", 1), ("4", 7), ("5", 0)] as [(String, UInt16)] {
      var port = PCIERootPortOptions()
      port.id = try Identifier(text: "rp\(address)")
      try port.apply([PropertyAssignment(name: "addr", value: address)])
      port.slot = slot
      configuration.devices.append(port)
    }
    configuration.devices.append(EduOptions())
    let slots = configuration.hotplugSlots(try configuration.devicePlacement())
    #expect(
      slots
        == [(4, 7), (5, 0), (6, 1)].map {
          HotplugSlot(port: RequesterID(bus: 0, device: $0, function: 0), number: $1)
        })
  }
}
