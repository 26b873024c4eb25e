import Devices
import Hardware
import Synchronization
import TestSupport
import Testing

/// A route that records its message, how often it was set, and what it sent.
private final class CountingRoute: InterruptRoute {
  private let state = Mutex((message: InterruptMessage?.none, sets: 0, sent: [InterruptMessage]()))

  var message: InterruptMessage? { state.withLock { $0.message } }
  var sets: Int { state.withLock { $0.sets } }
  var sent: [InterruptMessage] { state.withLock { $0.sent } }

  func set(_ message: InterruptMessage?) {
    state.withLock { state in
      state.message = message
      state.sets += 1
    }
  }

  func signal() {
    state.withLock { state in
      if let message = state.message { state.sent.append(message) }
    }
  }
}

@Suite struct IOAPICTests {
  private let routes = (0..<24).map { _ in CountingRoute() }
  private let controller: IOAPICDevice

  init() { controller = IOAPICDevice(routes: routes, identification: 2) }

  private func read(_ index: UInt8) -> UInt32 {
    controller.write(offset: 0, width: .doubleword, value: UInt64(index))
    return UInt32(controller.read(offset: 0x10, width: .doubleword))
  }

  private func write(_ index: UInt8, _ value: UInt32) {
    controller.write(offset: 0, width: .doubleword, value: UInt64(index))
    controller.write(offset: 0x10, width: .doubleword, value: UInt64(value))
  }

  /// Writes an entry like Linux: the upper half first, the mask bit last.
  private func program(_ pin: UInt8, _ entry: UInt64) {
    write(0x11 + 2 * pin, UInt32(truncatingIfNeeded: entry >> 32))
    write(0x10 + 2 * pin, UInt32(truncatingIfNeeded: entry))
  }

  private func endOfInterrupt(_ vector: UInt8) {
    controller.write(offset: 0x40, width: .doubleword, value: UInt64(vector))
  }

  private let edge: UInt64 = 0x0000_0000_0000_0031
  private let level: UInt64 = 0x0000_0000_0000_a031
  private let masked: UInt64 = 0x1_0000

  // MARK: Registers

  @Test("the controller identifies itself, and only its id is writable")
  func identifiesItself() {
    #expect(read(0x00) == 0x0200_0000)
    #expect(read(0x01) == 0x0017_0020)
    #expect(read(0x02) == 0x0200_0000)
    write(0x00, 0xffff_ffff)
    #expect(read(0x00) == 0x0f00_0000)
    write(0x01, 0)
    #expect(read(0x01) == 0x0017_0020)
  }

  @Test("entries are masked after a reset, and other indices read as zero")
  func entriesAreMaskedAfterReset() {
    for pin in UInt8(0)..<24 {
      #expect(read(0x10 + 2 * pin) == 0x0001_0000)
      #expect(read(0x11 + 2 * pin) == 0)
    }
    #expect(read(0x40) == 0)
    #expect(read(0xff) == 0)
  }

  @Test("entries keep their writable bits")
  func entriesKeepTheirWritableBits() {
    write(0x3f, 0xffff_ffff)
    write(0x3e, 0xffff_ffff)
    #expect(read(0x3e) == 0x0001_afff)  // Delivery status, remote IRR and reserved bits read zero.
    #expect(read(0x3f) == 0xffff_0000)
    #expect(controller.entry(23).rawValue == 0xffff_0000_0001_afff)
    #expect(controller.entry(22) == .reset)
  }

  @Test("the selector reads back, and the window accepts only doubleword writes")
  func selectReadsBackAndTheWindowTakesDoublewordsOnly() {
    controller.write(offset: 0, width: .byte, value: 0x12)
    #expect(controller.read(offset: 0, width: .byte) == 0x12)
    controller.write(offset: 0x10, width: .byte, value: 0x55)
    #expect(controller.read(offset: 0x10, width: .byte) == 0)
    #expect(controller.entry(1) == .reset)
  }

  // MARK: Messages

  /// Entry, address, data: destination and mode, delivery mode, trigger mode; then remappable
  /// format: index 14:0 from bits 63:49, index 15 from bit 11.
  @Test(
    "an entry sends its message in compatibility or in remappable format",
    arguments: [
      (0x0000_0000_0000_0031, 0xfee0_0000, 0x0000_0031),
      (0x0300_0000_0000_0930, 0xfee0_3004, 0x0000_0130),
      (0xff00_0000_0000_a8ef, 0xfeef_f004, 0x0000_c0ef),
      (0x0402_0000_0000_0431, 0xfee0_4020, 0x0000_0431),
      (0x0001_0000_0000_0004, 0xfee0_0010, 0x0000_0004),
      (0x0003_0000_0000_8009, 0xfee0_0030, 0x0000_c009),
      (0xffff_0000_0000_0810, 0xfeef_fff4, 0x0000_0010),
      (0x2469_0000_0000_a80a, 0xfee2_4694, 0x0000_c00a),
    ] as [(UInt64, UInt64, UInt32)])
  func messagesOfEntries(entry: UInt64, address: UInt64, data: UInt32) {
    program(7, entry)
    #expect(routes[7].message == InterruptMessage(address: address, data: data))
  }

  @Test("masking an entry removes its message")
  func maskingTakesTheMessageAway() {
    program(4, edge)
    #expect(routes[4].message != nil)
    program(4, edge | masked)
    #expect(routes[4].message == nil)
  }

  @Test("a route is set only when its message changes")
  func routesAreSetOnlyWhenTheMessageChanges() {
    program(4, edge)
    #expect(routes[4].sets == 1)
    program(4, edge)
    program(4, edge | 1 << 13)  // Polarity is not in the message.
    #expect(routes[4].sets == 1)
    #expect(controller.entry(4).rawValue == edge | 1 << 13)
    #expect(routes.map(\.sets).reduce(0, +) == 1)
  }

  // MARK: Edge

  @Test("an edge is sent once")
  func anEdgeSendsOnce() {
    program(4, edge)
    let line = controller.line(4)
    line.set(true)
    line.set(true)
    #expect(routes[4].sent.count == 1)
    line.set(false)
    #expect(routes[4].sent.count == 1)
    line.set(true)
    #expect(routes[4].sent == [InterruptMessage](repeating: .init(address: 0xfee0_0000, data: 0x31), count: 2))
    #expect(controller.entry(4).remoteIRR == false)
  }

  @Test("an edge on a masked pin is lost")
  func anEdgeOnAMaskedPinIsLost() {
    let line = controller.line(4)
    program(4, edge | masked)
    line.set(true)
    program(4, edge)
    #expect(routes[4].sent.isEmpty)
    line.set(false)
    line.set(true)
    #expect(routes[4].sent.count == 1)
  }

  // MARK: Level

  @Test("a level is sent again at the end of interrupt while it is asserted")
  func aLevelIsSentAgainAtTheEndOfInterruptWhileAsserted() {
    program(16, level)
    let line = controller.line(16)
    line.set(true)
    #expect(routes[16].sent.count == 1)
    #expect(controller.entry(16).rawValue == level | 1 << 14)
    line.set(false)
    line.set(true)
    #expect(routes[16].sent.count == 1)
    controller.endOfInterrupt(vector: 0x31)
    #expect(routes[16].sent.count == 2)
    #expect(controller.entry(16).remoteIRR)
    line.set(false)
    #expect(controller.entry(16).remoteIRR)
    controller.endOfInterrupt(vector: 0x31)
    #expect(routes[16].sent.count == 2)
    #expect(!controller.entry(16).remoteIRR)
  }

  @Test("an interrupt ends by the EOI register, by its vector and by its pin")
  func endsByRegisterVectorAndPin() {
    program(16, level)
    program(17, level & ~0xff | 0x32)
    let lines = [controller.line(16), controller.line(17)]
    for line in lines { line.set(true) }
    endOfInterrupt(0x32)
    #expect(routes[16].sent.count == 1)
    #expect(routes[17].sent.count == 2)
    controller.endOfInterrupt(pin: 16)
    #expect(routes[16].sent.count == 2)
    #expect(routes[17].sent.count == 2)
    controller.write(offset: 0x40, width: .byte, value: 0x32)  // A byte write has no effect.
    #expect(routes[17].sent.count == 2)
    endOfInterrupt(0x99)
    #expect(routes.map(\.sent.count).reduce(0, +) == 4)
  }

  @Test("an end of interrupt does not affect edge-triggered pins")
  func endDoesNotTouchEdgeTriggeredPins() {
    let ended = Calls<[Int]>()
    let controller = IOAPICDevice(routes: routes) { ended.append(Array($0)) }
    controller.write(offset: 0, width: .doubleword, value: 0x10)
    controller.write(offset: 0x10, width: .doubleword, value: edge)
    controller.line(0).set(true)
    controller.endOfInterrupt(vector: 0x31)
    controller.endOfInterrupt(pin: 0)
    #expect(routes[0].sent.count == 1)
    #expect(ended.values.isEmpty)
  }

  @Test("a level waits while it is masked")
  func aLevelWaitsBehindTheMask() {
    program(16, level | masked)
    let line = controller.line(16)
    line.set(true)
    #expect(routes[16].sent.isEmpty)
    program(16, level)
    #expect(routes[16].sent.count == 1)
    #expect(controller.entry(16).remoteIRR)
  }

  @Test("a level that was asserted before its entry is written is sent")
  func aLevelThatCameBeforeTheEntryIsSeen() {
    let line = controller.line(9)
    line.set(true)
    program(9, level)
    #expect(routes[9].sent.count == 1)
  }

  /// A threaded handler masks the pin, ends the interrupt, handles it and unmasks the pin.
  @Test("an end of interrupt while masked is not lost")
  func endWhileMaskedIsNotLost() {
    program(16, level)
    let line = controller.line(16)
    line.set(true)
    program(16, level | masked)
    // KVM reports the end only of vectors that it finds in its routes.
    #expect(routes[16].message == InterruptMessage(address: 0xfee0_0000, data: 0xc031))
    #expect(controller.entry(16).remoteIRR)
    controller.endOfInterrupt(vector: 0x31)
    #expect(!controller.entry(16).remoteIRR)
    #expect(routes[16].message == nil)
    #expect(routes[16].sent.count == 1)
    program(16, level)
    #expect(routes[16].sent.count == 2)
  }

  @Test("remote IRR is read-only and is cleared by edge trigger mode")
  func remoteIRRIsReadOnlyAndClearsWithEdgeTrigger() {
    program(16, level)
    let line = controller.line(16)
    line.set(true)
    program(16, level)
    #expect(controller.entry(16).remoteIRR)
    #expect(routes[16].sent.count == 1)
    // Software without an EOI register ends the interrupt this way.
    program(16, edge | masked)
    #expect(!controller.entry(16).remoteIRR)
    program(16, level | masked)
    program(16, level)
    #expect(routes[16].sent.count == 2)
    program(17, level | 1 << 14 | 1 << 12)
    #expect(controller.entry(17).rawValue == level)
  }

  @Test("the end-of-interrupt handler is called with the level-triggered pins of every ended vector")
  func endHandlerHearsOfInterruptsThatWentPast() {
    let ended = Calls<[Int]>()
    let controller = IOAPICDevice(routes: routes) { ended.append(Array($0)) }
    for pin in [UInt64(3), 20] {
      controller.write(offset: 0, width: .doubleword, value: 0x10 + 2 * pin)
      controller.write(offset: 0x10, width: .doubleword, value: level)
    }
    controller.endOfInterrupt(vector: 0x31)
    controller.write(offset: 0x40, width: .doubleword, value: 0x31)
    controller.endOfInterrupt(pin: 20)
    #expect(ended.values == [[3, 20], [3, 20], [20]])
    #expect(Array(controller.levelTriggeredPins(vector: 0x31)) == [3, 20])
    #expect(controller.levelTriggeredPins(vector: 0x30).isEmpty)
  }

  @Test("the end-of-interrupt handler may drive a line")
  func endHandlerMayDriveALine() {
    let lines = Calls<any InterruptLine>()
    let controller = IOAPICDevice(routes: routes) { _ in lines.values.first?.set(false) }
    controller.write(offset: 0, width: .doubleword, value: 0x10)
    controller.write(offset: 0x10, width: .doubleword, value: level)
    lines.append(controller.line(0))
    lines.values[0].set(true)
    controller.endOfInterrupt(vector: 0x31)
    #expect(routes[0].sent.count == 2)  // The line is still asserted when the interrupt ends.
    controller.endOfInterrupt(vector: 0x31)
    #expect(routes[0].sent.count == 2)
  }

  // MARK: Lines

  @Test("a pin is asserted while any of its lines is")
  func aPinIsAssertedWhileAnyOfItsLinesIs() {
    program(18, level)
    let first = controller.line(18)
    let second = controller.line(18)
    first.set(true)
    second.set(true)
    #expect(routes[18].sent.count == 1)
    first.set(false)
    controller.endOfInterrupt(pin: 18)
    #expect(routes[18].sent.count == 2)
    second.set(false)
    second.set(false)
    controller.endOfInterrupt(pin: 18)
    #expect(routes[18].sent.count == 2)
    first.set(true)
    #expect(routes[18].sent.count == 3)
  }

  @Test("a line that its device released no longer asserts its pin")
  func aLineThatIsLetGoOfIsNotAsserted() {
    program(18, level)
    do {
      let unplugged = controller.line(18)
      unplugged.set(true)
    }
    #expect(routes[18].sent.count == 1)
    controller.endOfInterrupt(pin: 18)
    #expect(routes[18].sent.count == 1)
  }

  @Test("after several threads drove lines of one pin, no stale assertion remains")
  func linesOfManyThreadsAddUp() async {
    program(18, level)
    let lines = (0..<4).map { _ in controller.line(18) }
    await withTaskGroup { group in
      for line in lines {
        group.addTask {
          for turn in 0..<2_000 {
            line.set(turn % 2 == 0)
            controller.endOfInterrupt(pin: 18)
          }
        }
      }
    }
    controller.endOfInterrupt(pin: 18)
    let quiet = routes[18].sent.count
    controller.endOfInterrupt(pin: 18)
    #expect(routes[18].sent.count == quiet)
    lines[2].set(true)
    #expect(routes[18].sent.count == quiet + 1)
  }

  @Test("a serial port on an edge-triggered pin sends an interrupt for every byte")
  func aSerialPortOnAnEdgePinSendsForEveryByte() {
    program(4, edge)
    let output = RecordingOutput()
    let port = SerialPort(output: output, interrupt: controller.line(4))
    port.writeByte(1, 0x02)
    #expect(routes[4].sent.count == 1)
    for count in 1...20 {
      port.writeByte(0, 0x41)
      #expect(routes[4].sent.count == 1 + count)
    }
    #expect(port.readByte(2) == 0x02)
    #expect(output.bytes.count == 20)
  }

  @Test("a reset masks every pin but keeps the lines")
  func resetMasksEveryPinButKeepsTheLines() {
    program(16, level)
    write(0x00, 0x0f00_0000)
    let line = controller.line(16)
    line.set(true)
    controller.reset()
    #expect(routes[16].message == nil)
    #expect(controller.entry(16) == .reset)
    #expect(read(0x00) == 0x0200_0000)
    program(16, level)
    #expect(routes[16].sent.count == 2)
  }

  @Test("every pin sends as the requester of its route")
  func everyPinSendsAsTheRequesterOfItsRoute() {
    let router = RecordingRouter()
    let requester = Requester(id: RequesterID(rawValue: 0xff00), busMasterEnable: true)
    let controller = IOAPICDevice(routes: (0..<24).map { _ in router.makeRoute(for: requester) })
    for pin in UInt64(0)..<24 {
      controller.write(offset: 0, width: .doubleword, value: 0x10 + 2 * pin)
      controller.write(offset: 0x10, width: .doubleword, value: 0x20 + pin)
      controller.line(Int(pin)).set(true)
    }
    #expect(router.messages == (0..<24).map { InterruptMessage(address: 0xfee0_0000, data: 0x20 + $0) })
    #expect(router.deliveries.allSatisfy { $0.requester.rawValue == 0xff00 })
  }
}
