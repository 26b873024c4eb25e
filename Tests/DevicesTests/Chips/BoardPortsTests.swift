import Devices
import Hardware
import Synchronization
import Testing

@Suite struct DebugExitTests {
  @Test(
    "the exit status is twice the value plus one",
    arguments: [
      (.byte, 0, 1), (.byte, 0x10, 0x21), (.word, 0x1234, 0x2469),
      (.doubleword, 0x8000_0001, 3), (.doubleword, 0xffff_ffff, -1),
    ] as [(AccessWidth, UInt64, Int32)])
  func statusIsTwiceTheValueAndOne(width: AccessWidth, value: UInt64, status: Int32) {
    let exits = Calls<Int32>()
    let device = DebugExit { exits.append($0) }
    #expect(device.read(offset: 0, width: width) == 0)
    device.write(offset: 0, width: width, value: value)
    #expect(exits.values == [status])
  }
}

@Suite struct ResetControlTests {
  let resets = Calls<ResetControlRegister.Reset>()
  let control: ResetControl

  init() { control = ResetControl { [resets] in resets.append($0) } }

  @Test(
    "a rising edge of the reset bit causes the reset that the other bits select",
    arguments: [
      (0x04, .processors), (0x06, .platform), (0x0e, .powerCycle), (0x0c, .processors),
    ] as [(UInt8, ResetControlRegister.Reset)])
  func theRisingBitResets(value: UInt8, reset: ResetControlRegister.Reset) {
    control.writeByte(0, value & ~0x04)
    #expect(resets.values.isEmpty)
    control.writeByte(0, value)
    #expect(resets.values == [reset])
    control.writeByte(0, value)
    #expect(resets.values == [reset])
    control.writeByte(0, 0)
    control.writeByte(0, value)
    #expect(resets.values == [reset, reset])
  }

  @Test("the reset control register reads back its three bits until a reset")
  func readsBackItsThreeBitsUntilReset() {
    control.writeByte(0, 0xff)
    #expect(control.readByte(0) == 0x0e)
    control.reset()
    #expect(control.readByte(0) == 0)
  }

  /// A device that records the accesses that reach it.
  private final class Configuration: BusDevice {
    let log = Calls<String>()
    func read(offset: UInt64, width: AccessWidth) -> UInt64 {
      log.append("read \(offset) \(width.rawValue)")
      return 0x55
    }
    func write(offset: UInt64, width: AccessWidth, value: UInt64) {
      log.append("write \(offset) \(width.rawValue) \(value)")
    }
  }

  @Test("byte accesses to port 0xcf9 reach the reset register, and all others the configuration ports")
  func liesWithinTheConfigurationPorts() {
    let configuration = Configuration()
    let bus = AddressBus()
    _ = bus.attach(
      ConfigurationAndResetPorts(configuration: configuration, resetControl: control), at: 0xcf8,
      size: ConfigurationAndResetPorts.regionSize)
    bus.write(address: 0xcf8, width: .doubleword, value: 0x8000_0600)
    bus.write(address: 0xcf9, width: .byte, value: 0x02)
    bus.write(address: 0xcf9, width: .byte, value: 0x06)
    #expect(resets.values == [.platform])
    #expect(bus.read(address: 0xcf9, width: .byte) == 0x06)
    #expect(bus.read(address: 0xcf8, width: .byte) == 0x55)
    #expect(bus.read(address: 0xcfc, width: .word) == 0x55)
    bus.write(address: 0xcf9, width: .word, value: 0)
    #expect(
      configuration.log.values == ["write 0 4 2147485184", "read 0 1", "read 4 2", "write 1 2 0"])
  }
}
