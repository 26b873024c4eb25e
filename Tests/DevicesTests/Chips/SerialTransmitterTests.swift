import Devices
import Hardware
import Testing

/// Tests the transmitter while the host's end accepts nothing (PC16550D data sheet, 8.6.1 FIFO interrupt mode, 8.4
/// LSR).
@Suite struct SerialTransmitterTests {
  let output = RecordingOutput()
  let line = LevelLog()
  let port: SerialPort

  init() { port = SerialPort(output: output, interrupt: line) }

  private var isEmpty: Bool {
    // THRE and TEMT are equal, because a byte that leaves the FIFO is sent at once.
    let status = port.readByte(5) & 0x60
    #expect(status == 0x60 || status == 0)
    return status == 0x60
  }
  private func send(_ bytes: some Sequence<UInt8>) { for byte in bytes { port.writeByte(0, byte) } }
  private func send(_ text: String) { send(Array(text.utf8)) }
  private func makeRoom(_ count: Int = .max) {
    output.room = count
    port.outputRoom()
  }

  @Test(
    "a driver that polls THRE before each byte loses none, with and without FIFOs", arguments: [0, 1] as [UInt8])
  func polledDriver(fifoControl: UInt8) {
    port.writeByte(2, fifoControl)
    output.room = 3
    var sent: [UInt8] = []
    for byte in UInt8(0)..<200 {
      if !isEmpty {
        // THRE stays clear until there is room.
        #expect(!isEmpty)
        makeRoom(Int(byte % 5) + 1)
        #expect(isEmpty)
      }
      send([byte])
      sent.append(byte)
    }
    makeRoom()
    #expect(output.bytes == sent)
  }

  @Test(
    "THRE stays clear while the output has no room, and its interrupt comes once there is room",
    arguments: [0, 1] as [UInt8])
  func interrupt(fifoControl: UInt8) {
    port.writeByte(2, fifoControl)
    let identification = fifoControl == 0 ? 0x01 : 0xc1 as UInt8
    port.writeByte(1, 0x02)
    #expect(port.readByte(2) == identification + 1)
    output.room = 0
    send("A")
    #expect(!isEmpty && port.readByte(2) == identification && line.levels == [true, false])
    // Enabling the interrupt again does not raise it, because the transmitter is not empty.
    port.writeByte(1, 0x00)
    port.writeByte(1, 0x02)
    #expect(port.readByte(2) == identification && line.levels == [true, false])
    makeRoom()
    #expect(line.levels == [true, false, true] && isEmpty && output.bytes == [0x41])
    #expect(port.readByte(2) == identification + 1 && line.levels.last == false)
    port.outputRoom()
    #expect(line.levels.last == false)
  }

  @Test("with FIFOs a burst of 16 bytes after THRE is kept whole, and THRE is set again when all have left")
  func burst() {
    port.writeByte(2, 0x01)
    port.writeByte(1, 0x02)
    _ = port.readByte(2)
    output.room = 0
    send(0..<16)
    makeRoom(15)
    #expect(!isEmpty && line.levels.last == false && output.bytes == Array(0..<15))
    makeRoom(1)
    #expect(isEmpty && line.levels.last == true && output.bytes == Array(0..<16))
  }

  @Test("without room, a new byte replaces the last one, and the FIFO drops the bytes beyond 16")
  func impoliteDriver() {
    output.room = 0
    send("abc")
    makeRoom()
    #expect(output.bytes == Array("c".utf8))
    port.writeByte(2, 0x01)
    output.room = 0
    send(0..<20)
    makeRoom()
    #expect(output.bytes == Array("c".utf8) + Array(0..<16))
  }

  @Test("resetting or switching the FIFOs empties the transmitter", arguments: [0x05, 0x00] as [UInt8])
  func reset(fifoControl: UInt8) {
    port.writeByte(2, 0x01)
    port.writeByte(1, 0x02)
    _ = port.readByte(2)
    output.room = 0
    send("lost")
    port.writeByte(2, 0x03)  // Resets only the receiver's FIFO.
    #expect(!isEmpty)
    port.writeByte(2, fifoControl)
    #expect(isEmpty && line.levels.last == true && port.readByte(2) & 0x0f == 0x02)
    makeRoom()
    send("kept")
    #expect(output.bytes == Array("kept".utf8))
    output.room = 0
    send("x")
    port.reset()
    #expect(isEmpty)
  }

  @Test("loopback works while bytes wait for room")
  func loopback() {
    output.room = 0
    send("w")
    port.writeByte(4, 0x10)
    send("l")
    #expect(port.readByte(0) == UInt8(ascii: "l") && !isEmpty)
    makeRoom()
    #expect(isEmpty && output.bytes == Array("w".utf8))
  }
}
