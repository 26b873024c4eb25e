import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// Checks the behaviour that QEMU's docs/specs/edu.rst describes, and that a hostile driver does no harm.
@Suite struct EduTests {
  private static let buffer: UInt64 = 0x40000

  /// - Parameter workers: The device's workers. The board's own workers run at once, within the write that wakes them.
  private func make(
    mask: UInt64 = 0xfff_ffff, mapping pages: [UInt64: UInt64] = [:], workers: (any QueueWorkerSource)? = nil
  ) -> (device: Edu, edu: TestFunction, remapper: PageRemapper) {
    let remapper = PageRemapper(memory: HeapMemory(size: 1 << 20))
    for (address, physical) in pages { remapper.map(address, to: physical, count: 4096) }
    let board = TestBoard(remapper: remapper, workers: workers)
    let device = Edu(mask: mask, environment: board.environment, address: RequesterID(bus: 0, device: 3, function: 0))
    return (device, TestFunction(device.function, on: board), remapper)
  }

  private func transfer(
    _ edu: TestFunction, from source: UInt64, to destination: UInt64, count: UInt64, command: UInt64
  ) {
    edu.write(0x80, source, .quadword)
    edu.write(0x88, destination, .quadword)
    edu.write(0x90, count, .quadword)
    edu.write(0x98, command, .quadword)
  }

  @Test("the function shows QEMU's identity, one MSI vector and a BAR of 1 MiB")
  func identity() {
    let (device, edu, _) = make()
    func configuration(_ offset: Int) -> UInt64 {
      device.function.readConfiguration(offset: offset, width: .doubleword)
    }
    #expect(configuration(0x00) == 0x11e8_1234)
    #expect(configuration(0x08) == 0x00ff_0010)
    #expect(configuration(0x2c) == 0x1100_1af4)
    #expect(configuration(0x3c) >> 8 & 0xff == 1)
    // The only capability is MSI, with one vector and a 64-bit address.
    let capability = Int(configuration(0x34) & 0xff)
    #expect(configuration(capability) & 0xffff == 0x0005)
    #expect(configuration(capability) >> 16 & 0x8e == 0x80)
    device.function.writeConfiguration(offset: 0x10, width: .doubleword, value: 0xffff_ffff)
    #expect(configuration(0x10) == 0xfff0_0000)
    device.function.writeConfiguration(offset: 0x10, width: .doubleword, value: TestFunction.base)
    #expect(edu.read(0x00) == 0x0100_00ed)
  }

  @Test("the liveness register reads as the inverse of the value written")
  func livenessIsTheInverse() {
    let (_, edu, _) = make()
    edu.write(0x04, 0x1234_5678)
    #expect(edu.read(0x04) == 0xedcb_a987)
  }

  @Test(
    "a factorial is computed modulo 2 to the 32",
    arguments: [
      (0, 1), (1, 1), (5, 120), (12, 479_001_600), (13, 1_932_053_504), (33, 0x8000_0000), (34, 0), (0xffff_ffff, 0),
    ] as [(UInt64, UInt64)])
  func factorial(of number: UInt64, is expected: UInt64) {
    let (_, edu, _) = make()
    edu.write(0x08, number)
    #expect(edu.read(0x20) == 0)
    #expect(edu.read(0x08) == expected)
    #expect(edu.read(0x24) == 0)
  }

  @Test("the worker computes the factorial and then interrupts")
  func factorialRunsOnTheWorker() {
    let (device, edu, _) = make(workers: ThreadedWorkerSource())
    defer { device.function.revoke() }
    edu.write(0x20, 0x80)
    edu.write(0x08, 5)
    #expect(eventually { edu.read(0x20) == 0x80 })
    #expect(edu.read(0x08) == 120)
    #expect(eventually { edu.read(0x24) == 1 })
    #expect(edu.board.line.asserted)
  }

  @Test("a raised interrupt stays until all its bits are acknowledged")
  func raisedInterruptStaysUntilAllOfItIsAcknowledged() {
    let (_, edu, _) = make()
    edu.write(0x60, 0x6)
    #expect(edu.read(0x24) == 0x6)
    #expect(edu.board.line.asserted)
    edu.write(0x64, 0x2)
    #expect(edu.board.line.asserted)
    edu.write(0x64, 0x4)
    #expect(edu.read(0x24) == 0)
    #expect(!edu.board.line.asserted)
    edu.write(0x60, 0)
    #expect(!edu.board.line.asserted)
  }

  @Test("with MSI enabled, an interrupt is a message and does not assert the wire")
  func messageInsteadOfTheWire() {
    let (device, edu, _) = make()
    let capability = Int(device.function.readConfiguration(offset: 0x34, width: .byte))
    device.function.writeConfiguration(offset: capability + 4, width: .doubleword, value: 0xfee0_1000)
    device.function.writeConfiguration(offset: capability + 12, width: .word, value: 0x41)
    device.function.writeConfiguration(offset: capability + 2, width: .word, value: 1)
    edu.write(0x60, 1)
    edu.write(0x60, 2)
    #expect(edu.board.router.messages == .init(repeating: InterruptMessage(address: 0xfee0_1000, data: 0x41), count: 2))
    #expect(edu.read(0x24) == 3)
    #expect(!edu.board.line.asserted)
  }

  @Test("transfers go through the remapper")
  func transfersGoThroughTheRemapper() {
    let (_, edu, remapper) = make(mapping: [0x10_0000: 0x3000, 0x10_1000: 0x8000])
    let bytes = (0..<100).map { UInt8($0) }
    // The transfer crosses into a page that is elsewhere in memory.
    remapper.memory.store(Array(bytes[..<50]), at: 0x3fce)
    remapper.memory.store(Array(bytes[50...]), at: 0x8000)
    transfer(edu, from: 0x10_0fce, to: Self.buffer, count: 100, command: 1)
    #expect(edu.read(0x98, .quadword) == 0)
    transfer(edu, from: Self.buffer + 10, to: 0x10_0100, count: 80, command: 7)
    #expect(remapper.memory.copy(0x3100, count: 80) == Array(bytes[10..<90]))
    #expect(edu.read(0x98) == 6)
    #expect(edu.read(0x24) == 0x100)
    #expect(edu.board.line.asserted)
    #expect(remapper.refused.isEmpty)
  }

  @Test("pages that the remapper refuses are left out")
  func whatTheRemapperRefusesIsLeftOut() {
    let (_, edu, remapper) = make(mapping: [0x10_0000: 0x3000])
    remapper.memory.store([UInt8](repeating: 0xaa, count: 4096), at: 0x3000)
    transfer(edu, from: 0x10_0000, to: Self.buffer, count: 4096, command: 1)
    transfer(edu, from: 0x10_0ff0, to: Self.buffer, count: 32, command: 1)
    #expect(remapper.refused == [0x10_1000])
    transfer(edu, from: Self.buffer, to: 0x10_0000, count: 64, command: 3)
    #expect(
      remapper.memory.copy(0x3000, count: 64)
        == [UInt8](repeating: 0xaa, count: 16) + [UInt8](repeating: 0, count: 16)
        + [UInt8](repeating: 0xaa, count: 32))
    // A transfer that is refused entirely still completes and interrupts.
    transfer(edu, from: Self.buffer, to: 0x20_0000, count: 4, command: 7)
    #expect(edu.read(0x98) == 6)
    #expect(edu.read(0x24) == 0x100)
    #expect(remapper.refused == [0x10_1000, 0x20_0000])
  }

  @Test(
    "addresses are reduced to the mask",
    arguments: [(0xfff_ffff, 0x5000), (0xffff_ffff_ffff_ffff, 0xabc_1000_5000)] as [(UInt64, UInt64)])
  func addressesAreReducedToTheMask(mask: UInt64, seen: UInt64) {
    let (_, edu, remapper) = make(mask: mask)
    transfer(edu, from: 0xabc_1000_5000, to: Self.buffer, count: 4, command: 1)
    #expect(remapper.refused == [seen])
  }

  @Test("there is no transfer without bus mastering")
  func noTransferWithoutBusMastering() {
    let (device, edu, remapper) = make(mapping: [0: 0x3000])
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x2)
    remapper.memory.store([1, 2, 3, 4, 5], at: 0x3000)
    transfer(edu, from: Self.buffer, to: 0, count: 5, command: 3)
    #expect(remapper.memory.copy(0x3000, count: 5) == [1, 2, 3, 4, 5])
    #expect(edu.read(0x98) == 2)
  }

  @Test(
    "a transfer outside the buffer moves nothing",
    arguments: [
      (0x3_ffff, 4), (0x4_0000, 4097), (0x4_0fff, 2), (0x4_1000, 1), (0, 4), (.max, 1), (.max, .max), (0x4_0000, .max),
      (0x8000_0000_0004_0000, 4),
    ] as [(UInt64, UInt64)])
  func transfersOutsideTheBufferMoveNothing(start: UInt64, count: UInt64) {
    let (_, edu, remapper) = make(mapping: [0: 0x3000, 0x1000: 0x4000, 0x2000: 0x5000])
    remapper.memory.store([UInt8](repeating: 0xaa, count: 0x3000), at: 0x3000)
    transfer(edu, from: 0, to: start, count: count, command: 5)
    #expect(edu.read(0x98) == 4)
    #expect(edu.read(0x24) == 0x100)
    transfer(edu, from: start, to: 0, count: count, command: 3)
    #expect(edu.read(0x98) == 2)
    #expect(remapper.memory.copy(0x3000, count: 0x3000) == [UInt8](repeating: 0xaa, count: 0x3000))
    #expect(remapper.refused.isEmpty)
    // The whole buffer is still zero.
    transfer(edu, from: Self.buffer, to: 0, count: 4096, command: 3)
    #expect(remapper.memory.copy(0x3000, count: 4096) == [UInt8](repeating: 0, count: 4096))
  }

  @Test("registers below 0x80 accept accesses of four bytes, and those from 0x80 on four or eight")
  func widths() {
    let (_, edu, _) = make()
    // Accesses of other widths do not reach the register.
    #expect(edu.read(0x00, .quadword) == .max)
    #expect(edu.read(0x00, .byte) == 0)
    #expect(edu.read(0x00, .word) == 0)
    #expect(edu.read(0x10) == 0xffff_ffff)
    edu.write(0x04, 5, .word)
    edu.write(0x00, 5 << 32, .quadword)
    #expect(edu.read(0x04) == 0)
    edu.write(0x80, 0x1122_3344_5566_7788, .quadword)
    #expect(edu.read(0x80, .quadword) == 0x1122_3344_5566_7788)
    #expect(edu.read(0x80) == 0x5566_7788)
    edu.write(0x80, 0xffff_ffff)
    #expect(edu.read(0x80, .quadword) == 0xffff_ffff)
    edu.write(0x80, 1, .byte)
    #expect(edu.read(0x80, .quadword) == 0xffff_ffff)
    // Eight bytes in the middle are two accesses, the second of them to the destination.
    edu.write(0x84, 0x99 << 32, .quadword)
    #expect(edu.read(0x88, .quadword) == 0x99)
    // Only the DMA engine reaches the buffer.
    #expect(edu.read(Self.buffer) == 0xffff_ffff)
  }

  @Test("a command without the start bit is dropped")
  func commandWithoutStartIsDropped() {
    let (_, edu, _) = make()
    edu.write(0x98, 6)
    #expect(edu.read(0x98) == 0)
  }

  @Test("a reset clears the registers and the buffer")
  func resetClears() {
    let (device, edu, remapper) = make(mapping: [0: 0x3000])
    remapper.memory.store([9, 9, 9, 9], at: 0x3000)
    transfer(edu, from: 0, to: Self.buffer, count: 4, command: 1)
    edu.write(0x04, 1)
    edu.write(0x60, 1)
    device.function.reset()
    #expect(!edu.board.line.asserted)
    let again = TestFunction(device.function, on: edu.board)
    #expect(again.read(0x04) == 0)
    #expect(again.read(0x24) == 0)
    #expect(again.read(0x80, .quadword) == 0)
    transfer(again, from: Self.buffer, to: 0, count: 4, command: 3)
    #expect(remapper.memory.copy(0x3000, count: 4) == [0, 0, 0, 0])
  }

  @Test("a removed device is gone, and its worker has stopped")
  func removedItIsGoneAndItsWorkerStopped() {
    let (device, edu, _) = make()
    device.function.revoke()
    #expect(edu.board.workers.workers.map(\.stopped) == [true])
    #expect(edu.read(0x00) == nil)
    device.writeRegion(bar: 0, offset: 0x08, width: .doubleword, value: 3)
    #expect(device.readRegion(bar: 0, offset: 0x20, width: .doubleword) == 1)
  }

  @Test("random accesses do no harm")
  func randomAccessesDoNoHarm() {
    let seed = UInt64.random(in: 0 ... .max)
    var random = SeededGenerator(seed: seed)
    let (_, edu, _) = make(mapping: [0: 0x3000])
    let values: [UInt64] = [0, 1, 3, 4, 7, 0x80, 0x40000, 0x40fff, 0x41000, .max, 1 << 63, 0xffff_ffff]
    for _ in 0..<20_000 {
      let offset = UInt64.random(in: 0..<0xa8, using: &random)
      let width = AccessWidth.allCases.randomElement(using: &random)!
      if Bool.random(using: &random) {
        _ = edu.read(offset, width)
      } else {
        edu.write(offset, values.randomElement(using: &random)! & width.allOnes, width)
      }
    }
    edu.write(0x04, 0)
    #expect(edu.read(0x04) == 0xffff_ffff, "seed \(seed)")
  }
}
