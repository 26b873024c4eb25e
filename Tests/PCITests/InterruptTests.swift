import Hardware
import TestSupport
import Testing

@testable import PCI

@Suite struct INTxTests {
  private let board = TestBoard()
  private let disable = Command.interruptDisable

  @Test("the interrupt line and Interrupt Status show the device's request") func theWireFollowsTheDevice() {
    let (function, _) = board.make(.everything)
    #expect(function.read16(StandardOffset.status) & 8 == 0)
    function.setINTx(true)
    #expect(board.line.asserted)
    #expect(function.read16(StandardOffset.status) & 8 != 0)
    function.setINTx(true)
    #expect(board.line.changes == 1)
    function.setINTx(false)
    #expect(!board.line.asserted)
    #expect(function.read16(StandardOffset.status) & 8 == 0)
  }

  @Test("Interrupt Disable releases the line and keeps the status bit")
  func interruptDisableCutsTheWireButNotTheStatus() {
    let (function, _) = board.make(.everything)
    function.setINTx(true)
    function.command(disable)
    #expect(!board.line.asserted)
    #expect(function.read16(StandardOffset.status) & 8 != 0)
    function.setINTx(false)
    function.setINTx(true)
    #expect(!board.line.asserted)
    function.command([])
    #expect(board.line.asserted)
    // The status bit is read-only.
    function.write16(StandardOffset.status, .max)
    #expect(function.read16(StandardOffset.status) & 8 != 0)
    #expect(board.line.asserted)
  }

  @Test("a byte write of Command changes Interrupt Disable") func aByteWriteReachesInterruptDisable() {
    let (function, _) = board.make(.everything)
    function.setINTx(true)
    function.write8(StandardOffset.command + 1, 4)
    #expect(!board.line.asserted)
    function.write8(StandardOffset.command, 4)
    #expect(!board.line.asserted)
    #expect(function.requester.busMasterEnable)
    function.write8(StandardOffset.command + 1, 0)
    #expect(board.line.asserted)
  }

  @Test("enabling MSI-X or MSI releases the interrupt line") func messagesTakeTheWirePlace() {
    let (function, _) = board.make(.everything)
    function.setINTx(true)
    function.write16(EverythingOffset.msix + 2, 0x8000)
    #expect(!board.line.asserted)
    function.write16(EverythingOffset.msix + 2, 0)
    #expect(board.line.asserted)
    function.write16(EverythingOffset.msi + 2, 1)
    #expect(!board.line.asserted)
    function.write16(EverythingOffset.msi + 2, 0)
    #expect(board.line.asserted)
  }

  @Test("a reset releases the interrupt line") func aResetReleasesTheWire() {
    let (function, _) = board.make(.everything)
    function.setINTx(true)
    function.reset()
    #expect(!board.line.asserted)
    #expect(function.read16(StandardOffset.status) & 8 == 0)
  }

  @Test("revoking a function releases the interrupt line") func removalReleasesTheWire() {
    let (function, _) = board.make(.everything)
    function.setINTx(true)
    function.revoke()
    #expect(!board.line.asserted)
  }
}

@Suite struct MSIXTests {
  private let board = TestBoard()
  private static let base: UInt64 = 0xc000_0000
  private static let pending: UInt64 = 0xc000_0800

  /// Returns a function with vectors 0 to 2 programmed and unmasked; MSI-X is disabled.
  private func make() -> Function {
    let (function, _) = board.make(.everything)
    function.write32(0x10, UInt32(Self.base))
    function.command([.memorySpaceEnable, .busMasterEnable])
    for vector in 0..<3 as Range<UInt64> {
      store(vector, 0, 0xfee0_1000)
      store(vector, 4, UInt32(vector))
      store(vector, 8, 0x40 + UInt32(vector))
      store(vector, 12, 0)
    }
    return function
  }

  private func store(_ vector: UInt64, _ offset: UInt64, _ value: UInt32) {
    board.memoryBus.write(address: Self.base + 16 * vector + offset, width: .doubleword, value: UInt64(value))
  }

  private func load(_ vector: UInt64, _ offset: UInt64, _ width: AccessWidth = .doubleword) -> UInt64? {
    board.memoryBus.read(address: Self.base + 16 * vector + offset, width: width)
  }

  private func control(_ function: Function, _ value: UInt16) { function.write16(EverythingOffset.msix + 2, value) }

  private func message(_ vector: UInt64) -> InterruptMessage {
    InterruptMessage(address: vector << 32 | 0xfee0_1000, data: 0x40 + UInt32(vector))
  }

  @Test("MSI-X table entries are zero and masked after a reset") func entriesComeOutOfResetMaskedAndZero() {
    let (function, _) = board.make(.everything)
    function.write32(0x10, UInt32(Self.base))
    function.command(.memorySpaceEnable)
    for vector in 0..<3 as Range<UInt64> {
      #expect(load(vector, 0, .quadword) == 0)
      #expect(load(vector, 8, .quadword) == 1 << 32)
    }
  }

  @Test("an enabled vector sends its message") func aVectorSendsItsMessage() {
    let function = make()
    let msix = function.msix
    msix?.signal(1)
    #expect(board.router.messages.isEmpty)
    control(function, 0x8000)
    #expect(msix?.isEnabled == true)
    msix?.signal(1)
    msix?.signal(2)
    msix?.signal(1)
    #expect(board.router.messages == [message(1), message(2), message(1)])
    #expect(board.router.deliveries.allSatisfy { $0.requester == RequesterID(rawValue: 0x10) })
    control(function, 0)
    msix?.signal(1)
    #expect(board.router.messages.count == 3)
  }

  @Test("a masked vector is pending and sends one message when it is unmasked")
  func aMaskedVectorIsPendingAndIsSentOnceWhenUnmasked() {
    let function = make()
    control(function, 0x8000)
    store(1, 12, 1)
    function.msix?.signal(1)
    function.msix?.signal(1)
    #expect(board.router.messages.isEmpty)
    #expect(board.memoryBus.read(address: Self.pending, width: .quadword) == 0b010)
    // If the message changes meanwhile, the new one is sent.
    store(1, 8, 0x99)
    store(1, 12, 0)
    #expect(board.router.messages == [InterruptMessage(address: 0x1_fee0_1000, data: 0x99)])
    #expect(board.memoryBus.read(address: Self.pending, width: .quadword) == 0)
    store(1, 12, 1)
    store(1, 12, 0)
    #expect(board.router.messages.count == 1)
  }

  @Test("the function mask masks all vectors") func theFunctionMaskHoldsAllVectors() {
    let function = make()
    control(function, 0xc000)
    function.msix?.signal(0)
    function.msix?.signal(2)
    #expect(board.router.messages.isEmpty)
    #expect(board.memoryBus.read(address: Self.pending, width: .byte) == 0b101)
    store(2, 12, 1)
    control(function, 0x8000)
    #expect(board.router.messages == [message(0)])
    #expect(board.memoryBus.read(address: Self.pending, width: .byte) == 0b100)
    store(2, 12, 0)
    #expect(board.router.messages == [message(0), message(2)])
  }

  /// Routes of a host whose eventfds are plain numbers. A test decides whether a signal is pending.
  private final class EventRouter: InterruptRouter {
    final class Route: EventRoute {
      let number: Int32
      let pending = SharedInteger()
      init(_ number: Int32) { self.number = number }
      func set(_ message: InterruptMessage?) {}
      func signal() {}
      func event() -> Int32? { number }
      var hasPendingSignal: Bool { pending.value > 0 }
    }

    let routes = Notes<Route>()

    func makeRoute(for requester: Requester) -> any InterruptRoute {
      let route = Route(Int32(500 + routes.all.count))
      routes.add(route)
      return route
    }
  }

  @Test func `the pending bit of a masked vector shows a signal of its eventfd`() throws {
    let router = EventRouter()
    let requester = Requester(id: RequesterID(rawValue: 0x10), busMasterEnable: true)
    let msix = MSIX(
      layout: .init(vectorCount: 3, bar: 0, pendingOffset: 0x800), requester: requester, router: router)
    #expect((0..<4).map { msix.notifier(of: $0)?.descriptor } == [500, 501, 502, nil])
    #expect(msix.notifier(of: -1) == nil)
    msix.control(enabled: true, functionMasked: false)
    _ = msix.write(bar: 0, offset: 12, width: .doubleword, value: 0)
    for route in router.routes.all { route.pending.increment() }
    // Vector 0 is not masked: its signals do not wait for the driver.
    #expect(msix.read(bar: 0, offset: 0x800, width: .quadword) == 0b110)
    _ = msix.write(bar: 0, offset: 12, width: .doubleword, value: 1)
    #expect(msix.read(bar: 0, offset: 0x800, width: .quadword) == 0b111)
  }

  @Test("the pending bits are read-only") func pendingBitsCannotBeWritten() {
    let function = make()
    control(function, 0xc000)
    function.msix?.signal(0)
    for width in AccessWidth.allCases {
      board.memoryBus.write(address: Self.pending, width: width, value: 0)
      #expect(board.memoryBus.read(address: Self.pending, width: width) == 1)
      board.memoryBus.write(address: Self.pending, width: width, value: .max)
      #expect(board.memoryBus.read(address: Self.pending, width: width) == 1)
    }
  }

  @Test("a quadword write to the MSI-X table changes both doublewords") func quadwordsReachBothHalves() {
    let function = make()
    board.memoryBus.write(address: Self.base, width: .quadword, value: 0x0000_0100_fee0_2007)
    board.memoryBus.write(address: Self.base + 8, width: .quadword, value: 0x0000_0000_0000_0055)
    // The two lowest address bits read as zero.
    #expect(load(0, 0, .quadword) == 0x0000_0100_fee0_2004)
    control(function, 0x8000)
    function.msix?.signal(0)
    #expect(board.router.messages == [InterruptMessage(address: 0x100_fee0_2004, data: 0x55)])
    board.memoryBus.write(address: Self.base + 8, width: .quadword, value: .max)
    // Only the mask bit of Vector Control exists.
    #expect(load(0, 8, .quadword) == 0x1_ffff_ffff)
  }

  /// PCI Express Base 7.7.2: software uses aligned doublewords and quadwords. The function ignores other writes.
  @Test("other widths can read the MSI-X table but not write it") func otherWidthsReadAndDoNotWrite() {
    _ = make()
    #expect(load(2, 1, .byte) == 0x10)
    #expect(load(2, 2, .word) == 0xfee0)
    #expect(load(2, 4, .byte) == 2)
    board.memoryBus.write(address: Self.base + 32, width: .byte, value: 0xff)
    board.memoryBus.write(address: Self.base + 32, width: .word, value: 0xffff)
    board.memoryBus.write(address: Self.base + 33, width: .doubleword, value: .max)
    board.memoryBus.write(address: Self.base + 36, width: .quadword, value: .max)
    #expect(load(2, 0, .quadword) == 0x2_fee0_1000)
    #expect(load(2, 8, .quadword) == 0x42)
  }

  @Test("a vector that does not exist sends nothing") func vectorsOutOfRangeDoNothing() {
    let function = make()
    control(function, 0x8000)
    for vector in [-1, 3, 4, 2048, Int.max, Int.min] { function.msix?.signal(vector) }
    #expect(board.router.messages.isEmpty)
  }

  @Test("MSI-X sends nothing while bus mastering is off, and a pending vector stays pending")
  func withoutBusMasteringNothingLeaves() {
    let function = make()
    control(function, 0x8000)
    function.command(.memorySpaceEnable)
    function.msix?.signal(0)
    #expect(board.router.messages.isEmpty)
    // The same holds when a pending vector is unmasked.
    function.command([.memorySpaceEnable, .busMasterEnable])
    store(1, 12, 1)
    function.msix?.signal(1)
    function.command(.memorySpaceEnable)
    store(1, 12, 0)
    #expect(!board.router.messages.contains(message(1)))
    #expect(board.memoryBus.read(address: Self.pending, width: .byte).map { $0 & 2 } == 2)
    function.command([.memorySpaceEnable, .busMasterEnable])
    #expect(board.router.messages.contains(message(1)))
    #expect(board.memoryBus.read(address: Self.pending, width: .byte) == 0)
  }

  @Test("accesses outside the MSI-X table and pending bits reach the model")
  func whatIsBeyondTableAndPendingBitsIsTheModels() {
    let (function, model) = board.make(.everything)
    function.write32(0x10, UInt32(Self.base))
    function.command(.memorySpaceEnable)
    _ = model.take()
    #expect(board.memoryBus.read(address: Self.base + 0x30, width: .doubleword) == 0x30)
    board.memoryBus.write(address: Self.base + 0x7fc, width: .doubleword, value: 7)
    board.memoryBus.write(address: Self.base + 0x808, width: .byte, value: 8)
    board.memoryBus.write(address: Self.base + 0x2c, width: .doubleword, value: 0)
    #expect(
      model.take() == [
        .write(bar: 0, offset: 0x7fc, width: .doubleword, value: 7),
        .write(bar: 0, offset: 0x808, width: .byte, value: 8),
      ])
  }

  @Test("an MSI-X table of 2048 vectors works, with its pending bits") func aTableOf2048VectorsWithItsPendingBits() {
    var description = FunctionDescription.plain
    description.baseAddressRegisters = [.init(index: 4, space: .memory64, size: 0x10000)]
    description.msix = MSIX.Layout(vectorCount: 2048, bar: 4, tableOffset: 0, pendingOffset: 0x8000)
    let (function, _) = board.make(description)
    #expect(function.read32(0x40) == 0x07ff_0011)
    #expect(function.read32(0x44) == 4)
    #expect(function.read32(0x48) == 0x8004)
    function.write32(0x20, 0xc000_0000)
    function.command([.memorySpaceEnable, .busMasterEnable])
    function.write16(0x42, 0xffff)
    #expect(function.read16(0x42) == 0xc7ff)
    for vector in [0, 63, 64, 2047] { function.msix?.signal(vector) }
    let pending = (0..<32 as Range<UInt64>).map {
      board.memoryBus.read(address: 0xc000_8000 + 8 * $0, width: .quadword)
    }
    #expect(pending[0] == 0x8000_0000_0000_0001)
    #expect(pending[1] == 1)
    #expect(pending[2..<31].allSatisfy { $0 == 0 })
    #expect(pending[31] == 0x8000_0000_0000_0000)
    #expect(board.memoryBus.read(address: 0xc000_80ff, width: .byte) == 0x80)
    #expect(board.memoryBus.read(address: 0xc000_8007, width: .word) == 0x180)
  }

  @Test("a byte write can enable MSI-X") func enablingWithAByteWrite() {
    let function = make()
    function.write8(EverythingOffset.msix + 3, 0x80)
    function.msix?.signal(0)
    #expect(board.router.messages == [message(0)])
  }
}

@Suite struct MSITests {
  private let board = TestBoard()
  private let at = EverythingOffset.msi

  private func make(granted: UInt16, data: UInt16 = 0x4130) -> Function {
    let (function, _) = board.make(.everything)
    function.command(.busMasterEnable)
    function.write32(at + 4, 0xfee0_3000)
    function.write32(at + 8, 0x0000_0200)
    function.write16(at + 12, data)
    function.write16(at + 2, 1 | granted << 4)
    return function
  }

  private func message(_ data: UInt32) -> InterruptMessage { InterruptMessage(address: 0x200_fee0_3000, data: data) }

  @Test("with one granted vector, all vectors send the same message") func oneGrantedVectorServesAll() {
    let function = make(granted: 0, data: 0x4133)
    for vector in 0..<4 { function.msi?.signal(vector) }
    #expect(board.router.messages == Array(repeating: message(0x4133), count: 4))
  }

  @Test("the vector number replaces the low bits of the data") func grantedVectorsReplaceTheLowBits() {
    let function = make(granted: 2, data: 0x4132)
    for vector in 0..<4 { function.msi?.signal(vector) }
    #expect(board.router.messages.map(\.data) == [0x4130, 0x4131, 0x4132, 0x4133])
    let two = make(granted: 1, data: 0x4133)
    let before = board.router.messages.count
    for vector in 0..<4 { two.msi?.signal(vector) }
    #expect(board.router.messages.dropFirst(before).map(\.data) == [0x4132, 0x4133, 0x4132, 0x4133])
  }

  @Test("granting more vectors than the function supports grants all of them") func moreThanOfferedIsNotGranted() {
    // 32 and both reserved encodings, for a function with 4 vectors.
    for granted in [5, 6, 7] as [UInt16] {
      let function = make(granted: granted)
      let before = board.router.messages.count
      function.msi?.signal(3)
      #expect(board.router.messages.dropFirst(before).map(\.data) == [0x4133])
    }
  }

  @Test("a masked MSI vector is pending until it is unmasked") func maskedVectorsArePendingUntilUnmasked() {
    let function = make(granted: 2)
    function.write32(at + 16, 0b1010)
    function.msi?.signal(1)
    function.msi?.signal(1)
    function.msi?.signal(0)
    function.msi?.signal(3)
    #expect(board.router.messages.map(\.data) == [0x4130])
    #expect(function.read32(at + 20) == 0b1010)
    function.write32(at + 20, 0)
    #expect(function.read32(at + 20) == 0b1010)
    function.write32(at + 16, 0b1000)
    #expect(board.router.messages.map(\.data) == [0x4130, 0x4131])
    #expect(function.read32(at + 20) == 0b1000)
    function.write32(at + 16, 0)
    #expect(board.router.messages.map(\.data) == [0x4130, 0x4131, 0x4133])
    #expect(function.read32(at + 20) == 0)
  }

  @Test("MSI sends nothing while disabled or without bus mastering, and a pending vector stays pending")
  func disabledOrWithoutBusMasteringNothingLeaves() {
    let function = make(granted: 0)
    function.write16(at + 2, 0)
    function.msi?.signal(0)
    function.write16(at + 2, 1)
    function.command([])
    function.msi?.signal(0)
    #expect(board.router.messages.isEmpty)
    function.command(.busMasterEnable)
    function.write32(at + 16, 1)
    function.msi?.signal(0)
    function.command([])
    function.write32(at + 16, 0)
    #expect(!board.router.messages.contains(message(0x4130)))
    #expect(function.read32(at + 20) == 1)
    function.command(.busMasterEnable)
    #expect(board.router.messages.contains(message(0x4130)))
    #expect(function.read32(at + 20) == 0)
  }

  @Test("a vector that does not exist sends nothing") func vectorsOutOfRangeDoNothing() {
    let function = make(granted: 2)
    for vector in [-1, 4, 32, Int.max, Int.min] { function.msi?.signal(vector) }
    #expect(board.router.messages.isEmpty)
  }

  @Test("32 MSI vectors work") func thirtyTwoVectors() {
    var description = FunctionDescription.plain
    description.msiVectorCount = 32
    let (function, _) = board.make(description)
    function.command(.busMasterEnable)
    #expect(function.read16(0x42) == 0x018a)
    function.write32(0x50, .max)
    #expect(function.read32(0x50) == .max)
    function.write16(0x42, 0x51)
    for vector in 0..<32 { function.msi?.signal(vector) }
    #expect(function.read32(0x54) == .max)
    function.write32(0x50, 0)
    #expect(board.router.messages.map(\.data) == Array(0..<32))
  }

  @Test("a reset clears MSI's registers and pending bits") func aResetForgetsEverything() {
    let function = make(granted: 2)
    function.write32(at + 16, 1)
    function.msi?.signal(0)
    function.reset()
    #expect(function.msi?.isEnabled == false)
    #expect(function.read32(at + 20) == 0)
    function.command(.busMasterEnable)
    function.write16(at + 2, 1)
    #expect(board.router.messages.isEmpty)
    function.msi?.signal(0)
    #expect(board.router.messages == [InterruptMessage(address: 0, data: 0)])
  }
}
