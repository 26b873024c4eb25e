import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// Checks registers and results as QEMU's docs/specs/iommu-testdev.rst describes them.
@Suite struct IOMMUTestDeviceTests {
  private static let pattern: [UInt8] = [0x78, 0x56, 0x34, 0x12]

  private func make(mapping pages: [UInt64: UInt64] = [:]) -> (TestFunction, PageRemapper) {
    let remapper = PageRemapper(memory: HeapMemory(size: 1 << 20))
    for (address, physical) in pages { remapper.map(address, to: physical, count: 4096) }
    let board = TestBoard(remapper: remapper)
    let device = IOMMUTestDevice(environment: board.environment, address: RequesterID(bus: 0, device: 3, function: 0))
    return (TestFunction(device.function, on: board), remapper)
  }

  /// Programs a transfer, arms it and triggers it.
  private func run(_ device: TestFunction, to address: UInt64, expectedAt physical: UInt64, count: UInt64) -> UInt64? {
    device.write(0x04, address & 0xffff_ffff)
    device.write(0x08, address >> 32)
    device.write(0x1c, physical & 0xffff_ffff)
    device.write(0x20, physical >> 32)
    device.write(0x0c, count)
    device.write(0x14, 1)
    #expect(device.read(0x10) == 0xffff_fffe)
    #expect(device.read(0x00) == 0)
    return device.read(0x10)
  }

  @Test("the function shows QEMU's identity and initial values")
  func identity() {
    let (device, _) = make()
    #expect(device.function.readConfiguration(offset: 0, width: .doubleword) == 0x0005_1b36)
    #expect(device.function.readConfiguration(offset: 8, width: .doubleword) == 0x00ff_0000)
    #expect(device.function.readConfiguration(offset: 0x3d, width: .byte) == 0)
    #expect(device.read(0x10) == 0xffff_ffff)
    #expect(device.read(0x18) == 2)
  }

  @Test("registers keep what is written, except for the doorbell")
  func registersHoldWhatIsWritten() {
    let (device, _) = make()
    for (offset, value) in [(0x04, 1), (0x08, 2), (0x0c, 3), (0x10, 4), (0x18, 5), (0x1c, 6), (0x20, 7)]
      as [(UInt64, UInt64)]
    {
      device.write(offset, value << 24 | value)
      #expect(device.read(offset) == value << 24 | value)
    }
    // The doorbell reads as zero, and so do offsets without a register.
    device.write(0x14, 1)
    #expect(device.read(0x14) == 0)
    #expect(device.read(0x24) == 0)
    // An access of four bytes is one register, an access of eight is two; other widths are ignored.
    #expect(device.read(0x04, .quadword) == 0x0200_0002_0100_0001)
    #expect(device.read(0x04, .word) == 0)
    device.write(0x04, 0, .byte)
    #expect(device.read(0x04) == 0x0100_0001)
    device.write(0x1c, 0x1122_3344_5566_7788, .quadword)
    #expect(device.read(0x1c) == 0x5566_7788)
    #expect(device.read(0x20) == 0x1122_3344)
  }

  @Test("the pattern is written where the table maps it")
  func patternIsWrittenWhereTheTableSays() {
    let (device, remapper) = make(mapping: [0x8_0000_0000: 0x5000, 0x8_0000_1000: 0x9000])
    #expect(run(device, to: 0x8_0000_0010, expectedAt: 0x5010, count: 7) == 0)
    #expect(remapper.memory.copy(0x500e, count: 11) == [0, 0] + Self.pattern + Self.pattern[..<3] + [0, 0])
    // This transfer has several parts.
    remapper.map(0x10_0000, to: 0x2_0000, count: 0x3000)
    #expect(run(device, to: 0x10_0000, expectedAt: 0x2_0000, count: 0x2801) == 0)
    #expect(remapper.memory.copy(0x2_27fc, count: 6) == Self.pattern + [0x78, 0])
  }

  @Test("each failure has its result code")
  func resultsOfWhatGoesWrong() {
    let (device, remapper) = make(mapping: [0x1000: 0x5000])
    #expect(device.read(0x00) == 0)
    #expect(device.read(0x10) == 0xdead_0005)
    #expect(run(device, to: 0x1000, expectedAt: 0x5000, count: 0) == 0xdead_0001)
    #expect(run(device, to: 0x2000, expectedAt: 0x5000, count: 4) == 0xdead_0002)
    #expect(remapper.refused == [0x2000])
    #expect(run(device, to: 0x1000, expectedAt: 1 << 40, count: 4) == 0xdead_0003)
    #expect(run(device, to: 0x1000, expectedAt: .max, count: 4) == 0xdead_0003)
    #expect(run(device, to: 0x1000, expectedAt: 0x6000, count: 4) == 0xdead_0004)
    #expect(run(device, to: .max, expectedAt: 0, count: 0x10_0000) == 0xdead_0002)
    // The trigger has disarmed the device.
    #expect(device.read(0x00) == 0)
    #expect(device.read(0x10) == 0xdead_0005)
  }

  /// The read that triggers a transfer waits for it, so the limit is 1 MiB. A longer transfer moves nothing.
  @Test("a transfer has at most 1 MiB")
  func lengthIsBounded() {
    let (device, remapper) = make()
    remapper.map(0x800_0000, to: 0, count: 0x10_0000)
    for count in [0x10_0001, 0x8000_0000, 0xffff_ffff] as [UInt64] {
      #expect(run(device, to: 0x800_0000, expectedAt: 0, count: count) == 0xdead_0001)
    }
    #expect(remapper.memory.copy(0, count: 4) == [0, 0, 0, 0])
    #expect(device.read(0x0c) == 0xffff_ffff)
    #expect(run(device, to: 0x800_0000, expectedAt: 0, count: 0x10_0000) == 0)
    #expect(remapper.memory.copy(0xf_fffc, count: 4) == Self.pattern)
  }

  @Test("a disarmed device transfers nothing")
  func disarmed() {
    let (device, remapper) = make(mapping: [0x1000: 0x5000])
    device.write(0x04, 0x1000)
    device.write(0x0c, 4)
    device.write(0x14, 1)
    device.write(0x14, 0)
    #expect(device.read(0x10) == 0xffff_ffff)
    _ = device.read(0x00)
    #expect(device.read(0x10) == 0xdead_0005)
    #expect(remapper.memory.copy(0x5000, count: 4) == [0, 0, 0, 0])
  }

  @Test(
    "attributes that contradict each other are refused",
    arguments: [
      (0b0000, 0), (0b0001, 0), (0b1000, 0xdead_0006), (0b1001, 0), (0b1010, 0), (0b1011, 0xdead_0006), (0b1100, 0),
      (0b1111, 0),
    ] as [(UInt64, UInt64)])
  func attributes(_ attributes: UInt64, result: UInt64) {
    let (device, _) = make(mapping: [0x1000: 0x5000])
    device.write(0x18, attributes)
    #expect(run(device, to: 0x1000, expectedAt: 0x5000, count: 4) == result)
  }

  @Test("a reset clears the registers and disarms the device")
  func resetClears() {
    let (device, _) = make(mapping: [0x1000: 0x5000])
    #expect(run(device, to: 0x1000, expectedAt: 0x5000, count: 4) == 0)
    device.write(0x14, 1)
    device.function.reset()
    let again = TestFunction(device.function, on: device.board)
    #expect(again.read(0x10) == 0xffff_ffff)
    #expect(again.read(0x04) == 0)
    _ = again.read(0x00)
    #expect(again.read(0x10) == 0xdead_0005)
  }
}
