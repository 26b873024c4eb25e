import Devices
import Hardware
import Testing

/// Offsets of the 16550A's registers.
private enum Register {
  static let data: UInt64 = 0
  static let interruptEnable: UInt64 = 1
  static let interruptIdentification: UInt64 = 2
  static let fifoControl: UInt64 = 2
  static let lineControl: UInt64 = 3
  static let modemControl: UInt64 = 4
  static let lineStatus: UInt64 = 5
  static let modemStatus: UInt64 = 6
  static let scratch: UInt64 = 7
}

@Suite struct SerialPortTests {
  let output = RecordingOutput()
  let line = LevelLog()
  let port: SerialPort

  init() { port = SerialPort(output: output, interrupt: line) }

  private func identification() -> UInt8 { port.readByte(Register.interruptIdentification) }

  @Test("the port powers on empty and without a pending interrupt")
  func powersOnEmptyAndSilent() {
    let registers = (1...7).map { port.readByte(UInt64($0)) }
    // IER, IIR (none pending), LCR, MCR, LSR (THRE, TEMT), MSR (DCD, DSR, CTS), SCR
    #expect(registers == [0x00, 0x01, 0x00, 0x00, 0x60, 0xb0, 0x00])
    #expect(line.levels.isEmpty)
    #expect(port.receiveRoom == 1)
  }

  @Test("bytes are sent in order, and the transmitter is ready at once")
  func sendsBytesInOrderAndIsReadyAtOnce() {
    for byte in Array("hello".utf8) {
      #expect(port.readByte(Register.lineStatus) & 0x60 == 0x60)
      port.writeByte(Register.data, byte)
    }
    #expect(output.bytes == Array("hello".utf8))
  }

  @Test("the divisor latch hides the data and interrupt enable registers")
  func divisorLatchHidesDataAndInterruptEnable() {
    port.writeByte(Register.interruptEnable, 0x05)
    port.writeByte(Register.lineControl, 0x83)
    port.writeByte(0, 0x0c)
    port.writeByte(1, 0x01)
    #expect(port.readByte(0) == 0x0c)
    #expect(port.readByte(1) == 0x01)
    port.writeByte(Register.lineControl, 0x03)
    #expect(port.readByte(Register.interruptEnable) == 0x05)
    #expect(port.readByte(Register.lineControl) == 0x03)
    #expect(output.bytes.isEmpty)
  }

  @Test("unimplemented bits read as zero")
  func unimplementedBitsReadZero() {
    port.writeByte(Register.interruptEnable, 0xff)
    port.writeByte(Register.modemControl, 0xff)
    port.writeByte(Register.scratch, 0xa5)
    #expect(port.readByte(Register.interruptEnable) == 0x0f)
    #expect(port.readByte(Register.modemControl) == 0x1f)
    #expect(port.readByte(Register.scratch) == 0xa5)
  }

  @Test("a wider access is split into bytes")
  func widerAccessIsSplitIntoBytes() {
    port.write(offset: 6, width: .word, value: 0x5aff)
    #expect(port.readByte(Register.scratch) == 0x5a)
    #expect(port.read(offset: 4, width: .doubleword) == 0x5ab0_6000)
    #expect(port.read(offset: 0, width: .quadword) == 0x5ab0_6000_0001_0000)
  }

  // MARK: Transmit interrupt

  @Test("enabling the transmit interrupt raises it")
  func enablingTheTransmitInterruptRaisesIt() {
    // Linux does this to find out whether the chip asserts the interrupt again.
    for _ in 0..<2 {
      port.writeByte(Register.interruptEnable, 0x02)
      #expect(identification() == 0x02)
      #expect(identification() == 0x01)
      port.writeByte(Register.interruptEnable, 0x00)
    }
    #expect(line.levels == [true, false, true, false])
  }

  @Test("a transmit interrupt that stays enabled is not raised again")
  func keepingTheTransmitInterruptEnabledIsNoNewCause() {
    port.writeByte(Register.interruptEnable, 0x02)
    #expect(identification() == 0x02)
    port.writeByte(Register.interruptEnable, 0x03)
    #expect(identification() == 0x01)
  }

  @Test("every byte sent causes a new edge of the interrupt line")
  func everyByteSentIsANewEdge() {
    port.writeByte(Register.interruptEnable, 0x02)
    #expect(line.levels == [true])
    port.writeByte(Register.data, 0x41)
    #expect(line.levels == [true, false, true])
    _ = identification()
    #expect(line.levels == [true, false, true, false])
    port.writeByte(Register.data, 0x42)
    #expect(line.levels == [true, false, true, false, true])
  }

  @Test("sending does not lower the line while input is pending")
  func sendingDoesNotLowerTheLineWhileInputIsPending() {
    port.writeByte(Register.interruptEnable, 0x03)
    port.receive([0x31])
    port.writeByte(Register.data, 0x41)
    #expect(line.levels == [true])
    #expect(identification() == 0x04)
    #expect(port.readByte(Register.data) == 0x31)
    #expect(identification() == 0x02)
  }

  // MARK: Receive

  @Test("without FIFOs one byte is received")
  func withoutFIFOsOneByteIsReceived() {
    port.writeByte(Register.interruptEnable, 0x01)
    port.receive([0x61])
    #expect(port.receiveRoom == 0)
    #expect(line.levels == [true])
    #expect(identification() == 0x04)
    #expect(port.readByte(Register.lineStatus) == 0x61)
    #expect(port.readByte(Register.data) == 0x61)
    #expect(port.readByte(Register.lineStatus) == 0x60)
    #expect(line.levels == [true, false])
    #expect(port.receiveRoom == 1)
    #expect(port.readByte(Register.data) == 0)
  }

  @Test("without FIFOs an overrun replaces the byte")
  func withoutFIFOsAnOverrunReplacesTheByte() {
    port.receive([0x61, 0x62])
    #expect(port.readByte(Register.lineStatus) == 0x63)
    #expect(port.readByte(Register.lineStatus) == 0x61)
    #expect(port.readByte(Register.data) == 0x62)
  }

  @Test(
    "the receive interrupt comes at the trigger level",
    arguments: [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] as [(UInt8, Int)])
  func triggerLevels(control: UInt8, level: Int) {
    port.writeByte(Register.fifoControl, control)
    port.writeByte(Register.interruptEnable, 0x01)
    port.receive([UInt8](repeating: 0x30, count: level - 1))
    #expect(identification() == (level == 1 ? 0xc1 : 0xcc))
    port.receive([0x30])
    #expect(identification() == 0xc4)
    _ = port.readByte(Register.data)
    #expect(identification() == (level == 1 ? 0xc1 : 0xcc))
  }

  @Test("a full FIFO keeps its bytes on overrun")
  func fullFIFOKeepsItsBytesOnOverrun() {
    port.writeByte(Register.fifoControl, 0xc1)
    #expect(port.receiveRoom == 16)
    port.receive(0..<20)
    #expect(port.receiveRoom == 0)
    #expect(port.readByte(Register.lineStatus) == 0x63)
    #expect((0..<16).map { _ in port.readByte(Register.data) } == Array(0..<16))
    #expect(port.readByte(Register.lineStatus) == 0x60)
  }

  @Test("the FIFO wraps around")
  func fifoWrapsAround() {
    port.writeByte(Register.fifoControl, 0x01)
    var read: [UInt8] = []
    for start in stride(from: UInt8(0), to: 200, by: 10) {
      port.receive(start..<start + 10)
      for _ in 0..<10 { read.append(port.readByte(Register.data)) }
    }
    #expect(read == Array(0..<200))
  }

  @Test("a handler that reads one byte per interrupt gets them all")
  func aHandlerThatReadsOneByteAnInterruptGetsThemAll() {
    port.writeByte(Register.fifoControl, 0x81)
    port.writeByte(Register.interruptEnable, 0x01)
    port.receive([1, 2, 3])
    var read: [UInt8] = []
    var handled = 0
    while handled < line.rises {
      handled += 1
      if identification() & 1 == 0 { read.append(port.readByte(Register.data)) }
    }
    #expect(read == [1, 2, 3])
    #expect(line.levels.last == false)
  }

  @Test("a reset of the receiver FIFO keeps the mode")
  func resettingTheReceiverFIFOKeepsTheMode() {
    port.writeByte(Register.fifoControl, 0x01)
    port.receive([1, 2, 3])
    port.writeByte(Register.fifoControl, 0x03)
    #expect(port.readByte(Register.lineStatus) == 0x60)
    #expect(port.receiveRoom == 16)
    #expect(identification() & 0xc0 == 0xc0)
    port.receive([4])
    port.writeByte(Register.fifoControl, 0x05)  // Resets only the transmitter's FIFO.
    #expect(port.readByte(Register.lineStatus) == 0x61)
  }

  @Test("switching the FIFOs empties them")
  func switchingFIFOsEmptiesThem() {
    port.writeByte(Register.fifoControl, 0x01)
    port.receive([1, 2, 3])
    port.writeByte(Register.fifoControl, 0xc0)  // Without bit 0 the trigger level is not set.
    #expect(port.readByte(Register.lineStatus) == 0x60)
    #expect(identification() == 0x01)
    #expect(port.receiveRoom == 1)
  }

  // MARK: Priority

  @Test("causes are identified by priority")
  func causesComeByPriority() {
    port.writeByte(Register.fifoControl, 0x01)
    // A change of CTS and DSR through loopback is a modem status cause.
    port.writeByte(Register.modemControl, 0x10)
    port.writeByte(Register.modemControl, 0x00)
    port.receive([UInt8](repeating: 7, count: 17))
    port.writeByte(Register.interruptEnable, 0x0f)
    #expect(identification() == 0xc6)
    #expect(port.readByte(Register.lineStatus) == 0x63)
    #expect(identification() == 0xc4)
    for _ in 0..<16 { _ = port.readByte(Register.data) }
    #expect(identification() == 0xc2)
    #expect(identification() == 0xc0)
    #expect(port.readByte(Register.modemStatus) == 0xbb)
    #expect(identification() == 0xc1)
    // The line is high from the first cause to the last.
    #expect(line.levels == [true, false])
  }

  @Test("causes that are not enabled do not raise the line")
  func causesThatAreNotEnabledAreSilent() {
    port.receive([1, 2])
    #expect(line.levels.isEmpty)
    port.writeByte(Register.interruptEnable, 0x04)
    #expect(line.levels == [true])
    #expect(identification() == 0x06)
  }

  // MARK: Loopback

  @Test("loopback returns bytes and sends none")
  func loopbackReturnsBytesAndSendsNone() {
    port.writeByte(Register.modemControl, 0x10)
    #expect(port.receiveRoom == 0)
    port.receive([0x99])
    #expect(port.readByte(Register.lineStatus) == 0x60)
    port.writeByte(Register.data, 0x5a)
    #expect(port.readByte(Register.lineStatus) == 0x61)
    #expect(port.readByte(Register.data) == 0x5a)
    #expect(output.bytes.isEmpty)
  }

  /// MCR outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
  @Test(
    "loopback returns the modem outputs",
    arguments: [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1a, 0x90)] as [(UInt8, UInt8)])
  func loopbackReturnsModemOutputs(control: UInt8, status: UInt8) {
    port.writeByte(Register.modemControl, control)
    #expect(port.readByte(Register.modemStatus) & 0xf0 == status)
    port.writeByte(Register.modemControl, 0x0b)
    #expect(port.readByte(Register.modemStatus) & 0xf0 == 0xb0)
  }

  @Test("only the trailing edge of the ring indicator sets its change bit")
  func ringIndicatorCountsItsTrailingEdgeOnly() {
    port.writeByte(Register.modemControl, 0x1b)  // All inputs but RI as the peer drives them.
    #expect(port.readByte(Register.modemStatus) == 0xb0)
    port.writeByte(Register.modemControl, 0x1f)
    #expect(port.readByte(Register.modemStatus) == 0xf0)
    port.writeByte(Register.modemControl, 0x1b)
    #expect(port.readByte(Register.modemStatus) == 0xb4)
    #expect(port.readByte(Register.modemStatus) == 0xb0)
  }

  // MARK: Room

  @Test("the port reports room when the guest has read all bytes")
  func tellsOfRoomWhenTheGuestHasReadAll() {
    let calls = Calls<Int>()
    port.writeByte(Register.fifoControl, 0x01)
    port.onReceiveRoom { [port] in calls.append(port.receiveRoom) }
    port.receive([1, 2, 3])
    _ = port.readByte(Register.data)
    _ = port.readByte(Register.data)
    #expect(calls.values.isEmpty)
    _ = port.readByte(Register.data)
    #expect(calls.values == [16])
    _ = port.readByte(Register.data)
    #expect(calls.values == [16])
  }

  @Test("the port reports room after loopback and after a FIFO reset")
  func tellsOfRoomAfterLoopbackAndFIFOReset() {
    let calls = Calls<Int>()
    port.onReceiveRoom { [port] in calls.append(port.receiveRoom) }
    port.writeByte(Register.fifoControl, 0x01)
    #expect(calls.values == [16])
    port.writeByte(Register.modemControl, 0x10)
    port.writeByte(Register.modemControl, 0x00)
    #expect(calls.values == [16, 16])
    port.receive([1])
    port.writeByte(Register.fifoControl, 0x03)
    #expect(calls.values == [16, 16, 16])
  }

  @Test("a reset lowers the line")
  func resetLowersTheLine() {
    port.writeByte(Register.interruptEnable, 0x01)
    port.writeByte(Register.lineControl, 0x03)
    port.receive([1])
    port.reset()
    #expect(line.levels == [true, false])
    #expect(port.readByte(Register.lineControl) == 0)
    #expect(port.readByte(Register.lineStatus) == 0x60)
  }
}
