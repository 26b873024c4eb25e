import Hardware
import PCI
import TestSupport
import Testing

@Suite struct ConfigurationMechanismTests {
  private let board = TestBoard()
  private let bus = Bus(number: 0)
  private let function: Function
  private let enhanced: EnhancedConfigurationAccess
  private let ports: PortConfigurationAccess

  init() throws {
    function = Function(.everything, at: RequesterID(bus: 0, device: 2, function: 3), environment: board.environment)
    try bus.add(function)
    let target = ConfigurationTarget(root: bus)
    enhanced = EnhancedConfigurationAccess(target: target)
    ports = PortConfigurationAccess(target: target)
  }

  private let base: UInt64 = 2 << 15 | 3 << 12
  private let portBase: UInt64 = 0x8000_0000 | 2 << 11 | 3 << 8

  @Test("ECAM reads every byte of a function") func enhancedReadsEveryByte() {
    for width in AccessWidth.allCases {
      for offset in stride(from: 0, to: 256, by: width.rawValue) {
        var value: UInt64 = 0
        for index in (0..<width.rawValue).reversed() {
          value = value << 8 | UInt64(ConfigurationImageTests.resetImage[offset + index])
        }
        #expect(enhanced.read(offset: base + UInt64(offset), width: width) == value)
      }
    }
  }

  @Test("ECAM writes reach the function") func enhancedWritesReachTheFunction() {
    enhanced.write(offset: base + 0x3c, width: .byte, value: 0x0b)
    #expect(function.read8(0x3c) == 0x0b)
    enhanced.write(offset: base + 0x10, width: .doubleword, value: 0xffff_ffff)
    #expect(enhanced.read(offset: base + 0x10, width: .doubleword) == 0xffff_f000)
  }

  @Test("ECAM reads all ones where no function is") func absentFunctionsReadAllOnes() {
    for address in [0, 0x8000, 2 << 15, base + 0x1000, 31 << 15 | 7 << 12, 1 << 20, base + 1 << 20, 255 << 20]
      as [UInt64]
    {
      for width in AccessWidth.allCases {
        #expect(enhanced.read(offset: address, width: width) == width.allOnes)
        enhanced.write(offset: address, width: width, value: 0)
      }
    }
    #expect(enhanced.read(offset: EnhancedConfigurationAccess.size - 1, width: .byte) == 0xff)
    #expect(enhanced.read(offset: base + 0x100, width: .doubleword) == 0)
    #expect(enhanced.read(offset: base + 0xffc, width: .doubleword) == 0)
  }

  @Test("an ECAM access across two functions is not answered") func enhancedAccessesAcrossFunctionsAreNotAnswered() {
    #expect(enhanced.read(offset: base + 0xffe, width: .doubleword) == 0xffff_ffff)
    #expect(enhanced.read(offset: base - 1, width: .word) == 0xffff)
    #expect(enhanced.read(offset: base + 0xff9, width: .quadword) == .max)
    enhanced.write(offset: base + 0xffe, width: .doubleword, value: 0)
    enhanced.write(offset: base - 2, width: .quadword, value: 0)
    #expect((0..<256).map { function.read8($0) } == ConfigurationImageTests.resetImage)
  }

  @Test("the data port answers only with the enable bit set") func portsWantTheEnableBit() {
    ports.write(offset: 0, width: .doubleword, value: portBase & ~0x8000_0000)
    #expect(ports.read(offset: 4, width: .doubleword) == 0xffff_ffff)
    ports.write(offset: 0, width: .doubleword, value: portBase)
    #expect(ports.read(offset: 4, width: .doubleword) == 0x1042_1af4)
  }

  @Test("the address register keeps its writable bits and accepts only doublewords")
  func theAddressRegisterKeepsItsBitsAndNoOthers() {
    #expect(ports.read(offset: 0, width: .doubleword) == 0)
    ports.write(offset: 0, width: .doubleword, value: 0xffff_ffff)
    #expect(ports.read(offset: 0, width: .doubleword) == 0x80ff_ffff)
    // It exists only for doubleword accesses.
    for width in [AccessWidth.byte, .word] {
      ports.write(offset: 0, width: width, value: 0)
      #expect(ports.read(offset: 0, width: width) == width.allOnes)
    }
    ports.write(offset: 1, width: .byte, value: 0)
    ports.write(offset: 2, width: .word, value: 0)
    #expect(ports.read(offset: 0, width: .doubleword) == 0x80ff_ffff)
  }

  @Test("bytes and words of the data port select the byte lanes") func byteLanesOfTheDataPort() {
    for register in stride(from: 0, to: 256, by: 4) {
      ports.write(offset: 0, width: .doubleword, value: portBase | UInt64(register))
      for lane in 0..<4 {
        #expect(
          ports.read(offset: 4 + UInt64(lane), width: .byte)
            == UInt64(ConfigurationImageTests.resetImage[register + lane]))
      }
      for lane in 0..<3 {
        let low = UInt64(ConfigurationImageTests.resetImage[register + lane])
        let high = UInt64(ConfigurationImageTests.resetImage[register + lane + 1])
        #expect(ports.read(offset: 4 + UInt64(lane), width: .word) == high << 8 | low)
      }
    }
    // The address register may also select the lane; an access never extends beyond the doubleword.
    for lane in 0..<4 {
      ports.write(offset: 0, width: .doubleword, value: portBase | UInt64(lane))
      #expect(ports.read(offset: 4, width: .byte) == UInt64(ConfigurationImageTests.resetImage[lane]))
      #expect((ports.read(offset: 4, width: .doubleword) == 0xffff_ffff) == (lane != 0))
    }
    ports.write(offset: 0, width: .doubleword, value: portBase | 2)
    #expect(ports.read(offset: 4, width: .word) == 0x1042)
    ports.write(offset: 0, width: .doubleword, value: portBase | 0x3c)
    ports.write(offset: 4, width: .byte, value: 0x0a)
    #expect(function.read8(0x3c) == 0x0a)
    ports.write(offset: 0, width: .doubleword, value: portBase | 0x04)
    ports.write(offset: 5, width: .byte, value: 0x04)
    #expect(function.read16(4) == 0x0400)
  }

  @Test("an access beyond the data port is not answered") func accessesPastTheDataPortAreNotAnswered() {
    ports.write(offset: 0, width: .doubleword, value: portBase)
    #expect(ports.read(offset: 5, width: .doubleword) == 0xffff_ffff)
    #expect(ports.read(offset: 7, width: .word) == 0xffff)
    #expect(ports.read(offset: 4, width: .quadword) == .max)
    #expect(ports.read(offset: 0, width: .quadword) == .max)
    ports.write(offset: 7, width: .word, value: 0)
    ports.write(offset: 2, width: .doubleword, value: 0)
    #expect(ports.read(offset: 0, width: .doubleword) == portBase)
  }

  @Test("the data port reads all ones if the address selects no function") func portsSeeAbsentFunctionsAsOnes() {
    for address in [0x8000_0000, portBase | 1 << 16, portBase ^ 1 << 8, portBase | 0xff << 16] as [UInt64] {
      ports.write(offset: 0, width: .doubleword, value: address)
      #expect(ports.read(offset: 4, width: .doubleword) == 0xffff_ffff)
      ports.write(offset: 4, width: .doubleword, value: 0)
    }
  }

  @Test("two functions cannot have the same address") func twoFunctionsCannotShareAnAddress() {
    let other = Function(.plain, at: RequesterID(bus: 0, device: 2, function: 3), environment: board.environment)
    let error = #expect(throws: Bus.AddressInUse.self) { try bus.add(other) }
    #expect(error?.address == RequesterID(bus: 0, device: 2, function: 3))
    #expect(bus.all.count == 1)
    #expect(bus.function(at: 0x13) === function)
    #expect(bus.freeDevice(from: 0) == 0)
    #expect(bus.freeDevice(from: 2) == 3)
    #expect(bus.freeDevice(from: 31) == 31)
    #expect(bus.freeDevice(from: 32) == nil)
    #expect(bus.freeDevice(from: 255) == nil)
  }
}
