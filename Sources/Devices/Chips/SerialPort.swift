import Hardware
import Synchronization

/// The destination of a serial port's output.
public protocol ChardevOutput: AnyObject, Sendable {
  /// Takes one byte. Called with the port's lock held, on a vCPU's thread or in `SerialPort.outputRoom`. It may buffer
  /// the byte, but must neither wait for a reader nor call the port.
  /// - Returns: false if there is no room for the byte. The owner calls `SerialPort.outputRoom` when there is room
  ///   again.
  func write(_ byte: UInt8) -> Bool
}

/// Connects a `UART16550` to the machine: to its eight I/O ports, to an interrupt line, and to input and output of the
/// host.
///
/// Lock order: the port's lock, then the interrupt line's and the output's. The room handler is called without the
/// port's lock, so it may call the port.
public final class SerialPort: ByteWideDevice {
  public static let regionSize: UInt64 = 8

  private struct State {
    var chip = UART16550()
    var roomHandler: (@Sendable () -> Void)?
  }

  private let state = Mutex(State())
  private let output: any ChardevOutput
  private let interrupt: any InterruptLine

  public init(output: any ChardevOutput, interrupt: any InterruptLine) {
    self.output = output
    self.interrupt = interrupt
  }

  /// The number of bytes that `receive` takes now without loss. Only the guest increases it. Only `receive` and the
  /// guest (loopback, FIFOs off) decrease it.
  public var receiveRoom: Int { state.withLock { $0.chip.receiveRoom } }

  /// Receives bytes from the line. Bytes beyond `receiveRoom` are lost, and the guest sees an overrun.
  public func receive(_ bytes: some Sequence<UInt8>) {
    state.withLock { state in
      for byte in bytes { state.chip.receive(byte) }
      interrupt.set(state.chip.interrupt)
    }
  }

  /// Sets the handler that is called when the guest has emptied the receiver, so that input moves in batches. Called on
  /// a vCPU's thread.
  public func onReceiveRoom(_ handler: (@Sendable () -> Void)?) {
    state.withLock { $0.roomHandler = handler }
  }

  /// Sends waiting bytes, now that the output takes bytes again. Any thread may call this.
  public func outputRoom() { access { _, _ in } }

  /// Returns to the state at power-on: registers at their defaults, FIFOs empty.
  public func reset() {
    access { chip, _ in chip = UART16550() }
  }

  public func readByte(at offset: UInt64) -> UInt8 {
    let register = UInt8(truncatingIfNeeded: offset)
    var value: UInt8 = 0
    access { chip, effects in value = chip.read(register, effects: &effects) }
    return value
  }

  public func writeByte(_ value: UInt8, at offset: UInt64) {
    let register = UInt8(truncatingIfNeeded: offset)
    access { chip, effects in chip.write(value, to: register, effects: &effects) }
  }

  private func access(_ body: (inout UART16550, inout UART16550.Effects) -> Void) {
    let roomHandler = state.withLock { state -> (@Sendable () -> Void)? in
      let room = state.chip.receiveRoom
      var effects = UART16550.Effects()
      body(&state.chip, &effects)
      while let byte = state.chip.nextToSend, output.write(byte) { state.chip.sent() }
      if effects.interruptFell { interrupt.set(false) }
      interrupt.set(state.chip.interrupt)
      let emptied = state.chip.receiverIsEmpty && state.chip.receiveRoom > room
      return emptied ? state.roomHandler : nil
    }
    roomHandler?()
  }
}
