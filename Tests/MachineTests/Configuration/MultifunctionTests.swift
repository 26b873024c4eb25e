import Devices
import Hardware
import PCI
import TestSupport
import Testing

@testable import Machine

/// Functions that share a device number follow QEMU's rules, and software finds them.
@Suite struct MultifunctionTests {
  private func edu(
    _ device: UInt8, _ function: UInt8, multifunction: Bool = false, bus: String = "pcie.0"
  ) throws -> EduOptions {
    var options = EduOptions()
    options.function.bus = bus
    options.function.address = RequesterID(bus: 0, device: device, function: function)
    options.function.isMultifunction = multifunction
    return options
  }

  private func port(_ id: String, _ function: UInt8, multifunction: Bool = false) throws -> PCIERootPortOptions {
    var options = PCIERootPortOptions()
    options.id = try Identifier(text: id)
    options.slot = UInt16(function)
    options.function.address = RequesterID(bus: 0, device: 4, function: function)
    options.function.isMultifunction = multifunction
    return options
  }

  private func address(_ device: UInt8, _ function: UInt8) -> RequesterID {
    RequesterID(bus: 0, device: device, function: function)
  }

  @Test func `other functions need multifunction on function 0, and not on themselves`() throws {
    var admission = DeviceAdmission()
    _ = try admission.admit(edu(5, 0))
    #expect(throws: DeviceProblem.singleFunction(address(5, 1))) { try admission.admit(edu(5, 1)) }
    #expect(throws: DeviceProblem.singleFunction(address(5, 7))) {
      try admission.admit(edu(5, 7, multifunction: true))
    }
    let six = try admission.admit(edu(6, 0, multifunction: true))
    for function in 1...7 as ClosedRange<UInt8> {
      #expect(try admission.admit(edu(6, function)) == PCIPlace(address(6, function)))
    }
    let owner = AddressOwner.device(typeName: "edu", id: nil)
    #expect(throws: DeviceProblem.addressTaken(address(6, 3), by: owner)) { try admission.admit(edu(6, 3)) }
    // When function 0 is released, its multifunction property no longer counts.
    admission.release(try edu(6, 0, multifunction: true), at: six)
    #expect(throws: DeviceProblem.functionPopulated(address(6, 1))) { try admission.admit(edu(6, 0)) }
  }

  @Test func `a function 0 without multifunction does not join others`() throws {
    var admission = DeviceAdmission()
    _ = try admission.admit(edu(5, 4))
    _ = try admission.admit(edu(5, 2, multifunction: true))
    #expect(throws: DeviceProblem.functionPopulated(address(5, 2))) { try admission.admit(edu(5, 0)) }
    _ = try admission.admit(edu(5, 0, multifunction: true))
    // The board's bridges are functions 0 without multifunction, too.
    #expect(throws: DeviceProblem.singleFunction(address(0, 1))) { try admission.admit(edu(0, 1)) }
    #expect(throws: DeviceProblem.singleFunction(address(31, 1))) { try admission.admit(edu(31, 1)) }
  }

  @Test func `on a running machine function 0 is added last`() throws {
    var admission = DeviceAdmission()
    _ = try admission.admit(port("rp0", 0))
    _ = try admission.admit(edu(0, 1, bus: "rp0"), isHotplugged: true)
    _ = try admission.admit(edu(0, 0, multifunction: true, bus: "rp0"), isHotplugged: true)
    let owner = AddressOwner.device(typeName: "edu", id: nil)
    #expect(throws: DeviceProblem.functionZeroFound(address(0, 2), by: owner)) {
      try admission.admit(edu(0, 2, bus: "rp0"), isHotplugged: true)
    }
  }

  @Test func `a device without an address avoids device numbers that have functions`() throws {
    var configuration = MachineConfiguration()
    configuration.devices = [EduOptions(), try edu(2, 3), try edu(1, 1), EduOptions()]
    #expect(try configuration.devicePlacement().map { $0?.device } == [3, 2, 1, 4])
  }

  @Test func `every type of PCI device accepts multifunction`() throws {
    func names<Options: PCIDeviceOptions>(_ type: Options.Type) -> [String] { type.properties.map(\.name) }
    for type in DeviceTypes.all.compactMap({ $0 as? any PCIDeviceOptions.Type }) {
      #expect(names(type).contains("multifunction"), "\(type.typeName)")
    }
  }

  @Test func `software finds the functions by bit 7 of the header type, on bus 0 and below ports`() throws {
    var configuration = MachineConfiguration()
    configuration.devices = [
      try edu(5, 0, multifunction: true), try edu(5, 1), try edu(6, 0), try port("rp0", 0, multifunction: true),
      try port("rp5", 5), try edu(0, 6, bus: "rp5"), try edu(0, 0, multifunction: true, bus: "rp5"),
    ]
    let client = try QTestBoard()
    let board = client.board
    for device in configuration.devices { try board.add(device, with: configuration) }
    func read(_ bus: UInt8, _ device: UInt8, _ function: UInt8, _ offset: UInt64, _ width: Int = 4) -> UInt64 {
      let id = RequesterID(bus: bus, device: device, function: function)
      return board.readMemory(BoardLayout.configurationAccess + UInt64(id.rawValue) << 12 + offset, width)
    }
    for _ in 0..<2 {
      try board.placeResources()
      #expect(read(0, 5, 0, 0x0e, 1) == 0x80)
      #expect(read(0, 5, 1, 0x0e, 1) == 0)
      #expect(read(0, 6, 0, 0x0e, 1) == 0)
      #expect(read(0, 4, 0, 0x0e, 1) == 0x81)
      #expect(read(0, 4, 5, 0x0e, 1) == 0x01)
      #expect(read(0, 4, 5, 0x18) == 0x0002_0200)
      #expect(read(2, 0, 0, 0x0e, 1) == 0x80)
      for (bus, device, function) in [(0, 5, 0), (0, 5, 1), (2, 0, 0), (2, 0, 6)] as [(UInt8, UInt8, UInt8)] {
        #expect(read(bus, device, function, 0) == 0x11e8_1234)
        // Each function has its BAR and its pin.
        #expect(board.readMemory(read(bus, device, function, 0x10), 4) == 0x0100_00ed)
        #expect(read(bus, device, function, 0x3c, 1) == (bus == 0 ? 21 : 20))
      }
      #expect(read(0, 5, 2, 0) == 0xffff_ffff)
      board.reset()
    }
  }
}
