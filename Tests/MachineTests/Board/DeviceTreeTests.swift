import Devices
import Hardware
import TestSupport
import Testing

@testable import Machine

/// Adds devices one at a time, as start-up and a monitor do.
@Suite struct DeviceTreeTests {
  private func edu(_ id: String? = nil, at device: UInt8? = nil) throws -> EduOptions {
    var options = EduOptions()
    options.id = try id.map { try Identifier(text: $0) }
    options.function.address = device.map { RequesterID(bus: 0, device: $0, function: 0) }
    return options
  }

  @Test func `an identity and an anonymous path are never reused, but an id and an address are`() throws {
    let tree = DeviceTree()
    let first = try tree.admit(edu("a"))
    let second = try tree.admit(edu())
    #expect(first.path == "/machine/peripheral/a" && second.path == "/machine/peripheral-anon/device[0]")
    #expect(tree.release(first.identity)?.device.identity == first.identity)
    #expect(tree.release(second.identity) != nil && tree.release(second.identity) == nil)
    let again = try tree.admit(edu("a"))
    let other = try tree.admit(edu())
    #expect(again.address == first.address && other.address == second.address)
    #expect(other.path == "/machine/peripheral-anon/device[1]")
    #expect(Set([first, second, again, other].map(\.identity)).count == 4)
    #expect(tree.device(at: RequesterID(bus: 0, device: 1, function: 0))?.identity == again.identity)
  }

  @Test func `a refused device leaves nothing behind`() throws {
    var configuration = MachineConfiguration()
    configuration.blockNodes = [BlockNode(id: "d", path: "disk.img")]
    let tree = DeviceTree(try DeviceAdmission(configuration))
    func disk(_ id: String, _ node: String, at device: UInt8) throws -> VirtioBlockOptions {
      var options = VirtioBlockOptions()
      options.id = try Identifier(text: id)
      options.drive = node
      options.function.address = RequesterID(bus: 0, device: device, function: 0)
      return options
    }
    let first = try tree.admit(disk("a", "d", at: 3))
    let three = RequesterID(bus: 0, device: 3, function: 0)
    let owner = AddressOwner.device(typeName: "virtio-blk-pci", id: first.id)
    #expect(throws: DeviceProblem.duplicateID(try Identifier(text: "a"))) { try tree.admit(edu("a")) }
    #expect(throws: DeviceProblem.addressTaken(three, by: owner)) { try tree.admit(edu("b", at: 3)) }
    let use = NodeUse(property: "drive", id: "d")
    #expect(throws: DeviceProblem.nodeInUse(use, by: .device(typeName: "virtio-blk-pci", id: first.id))) {
      try tree.admit(disk("b", "d", at: 4))
    }
    // The refused devices hold neither an id nor an address.
    #expect(try tree.admit(edu("b", at: 4)).address == RequesterID(bus: 0, device: 4, function: 0))
    #expect(tree.release(first.identity) != nil)
    #expect(try tree.admit(disk("c", "d", at: 3)).address == three)
  }

  @Test func `a collision on the bus is an error, and the new device releases its resources`() throws {
    let client = try QTestBoard()
    let board = client.board
    let added = try board.add(edu("a", at: 5), with: MachineConfiguration())
    let address = try #require(added.address)
    let intruder = Edu(mask: .max, environment: board.environment(at: address), address: address)
    let removals = SharedInteger()
    intruder.function.environment.onRelease { removals.increment() }
    #expect(throws: StartError.self) {
      try board.plug(intruder.function, of: nil)
    }
    #expect(removals.value == 1)
    let there = try #require(board.rootBus.function(at: address.deviceFunction))
    #expect(there !== intruder.function && board.devices.all.map(\.identity) == [added.identity])
  }
}
