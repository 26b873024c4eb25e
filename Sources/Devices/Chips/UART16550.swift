/// A 16550A serial controller as a value (National Semiconductor PC16550D data sheet, section 8). `SerialPort` connects
/// it to the machine.
///
/// The line is infinitely fast while the other end takes bytes: a written byte is sent before the write ends. While the
/// other end takes none, THRE and TEMT are clear, and bytes stay in the holding register or the transmitter's FIFO;
/// bytes that do not fit are lost, as on the chip. The character timeout of four character times elapses at once, so
/// bytes in the receiver below its trigger level cause it immediately.
///
/// INTR is the chip's output. A PC gates it by OUT2. Like QEMU, this model does not: small kernels leave OUT2 clear.
struct UART16550: Sendable {
  /// The effects of an access beyond the registers.
  struct Effects: Hashable, Sendable {
    /// Whether INTR was low at some moment of the access, though it may be high again: an edge-triggered interrupt
    /// controller must see the low level.
    var interruptFell = false

    init() {}
  }

  static let fifoDepth = 16

  /// The inputs from the other end, which are those of a modem that is online and ready.
  private static let peer: ModemStatus = [.dataCarrierDetect, .dataSetReady, .clearToSend]

  private var interruptEnable: InterruptEnable = []
  private var fifoControl = FIFOControl(rawValue: 0)
  private var lineControl: UInt8 = 0
  private var modemControl: ModemControl = []
  private var modemStatus = peer
  private var overrun = false
  private var scratch: UInt8 = 0
  private var divisorLatch: UInt16 = 0
  /// Whether the transmitter became empty, or its interrupt was enabled, and the guest has not read this cause yet.
  private var transmitterInterrupt = false

  /// The transmitter's FIFO, or the holding register.
  private var held = InlineArray<16, UInt8>(repeating: 0)
  private var heldFirst = 0
  private var heldCount = 0

  private var received = InlineArray<16, UInt8>(repeating: 0)
  private var receivedFirst = 0
  private var receivedCount = 0

  init() {}

  /// The level of INTR.
  var interrupt: Bool { interruptIdentification != .none }

  /// The number of bytes that the receiver takes before it overruns. Zero in loopback, which disconnects the line.
  var receiveRoom: Int { modemControl.contains(.loop) ? 0 : receiverCapacity - receivedCount }

  var receiverIsEmpty: Bool { receivedCount == 0 }

  /// Receives a byte from the line.
  mutating func receive(_ byte: UInt8) {
    guard !modemControl.contains(.loop) else { return }
    accept(byte)
  }

  /// - Parameter register: the offset from the port's base; only bits 2:0 are decoded.
  mutating func read(_ register: UInt8, effects: inout Effects) -> UInt8 {
    switch register & 7 {
    case 0 where divisorLatchAccess: return UInt8(truncatingIfNeeded: divisorLatch)
    case 1 where divisorLatchAccess: return UInt8(truncatingIfNeeded: divisorLatch >> 8)
    case 0: return takeReceived(&effects)
    case 1: return interruptEnable.rawValue
    case 2: return takeInterruptIdentification()
    case 3: return lineControl
    case 4: return modemControl.rawValue
    case 5: return takeLineStatus()
    case 6: return takeModemStatus()
    default: return scratch
    }
  }

  /// - Parameter register: the offset from the port's base; only bits 2:0 are decoded.
  mutating func write(_ value: UInt8, to register: UInt8, effects: inout Effects) {
    switch register & 7 {
    case 0 where divisorLatchAccess: divisorLatch = divisorLatch & 0xff00 | UInt16(value)
    case 1 where divisorLatchAccess: divisorLatch = divisorLatch & 0x00ff | UInt16(value) << 8
    case 0: transmit(value, &effects)
    case 1: enableInterrupts(InterruptEnable(rawValue: value).intersection(.implemented))
    case 2: controlFIFOs(FIFOControl(rawValue: value))
    case 3: lineControl = value
    case 4:
      modemControl = ModemControl(rawValue: value).intersection(.implemented)
      updateModemInputs()
    case 7: scratch = value
    default: break  // LSR and MSR are read-only.
    }
  }

  // MARK: Interrupts

  private var interruptIdentification: InterruptIdentification { identification(timeoutElapsed: true) }

  private func identification(timeoutElapsed: Bool) -> InterruptIdentification {
    if interruptEnable.contains(.receiverLineStatus), overrun { return .receiverLineStatus }
    if interruptEnable.contains(.receivedDataAvailable), receivedCount > 0 {
      if receivedCount >= receiverTrigger { return .receivedDataAvailable }
      if timeoutElapsed { return .characterTimeout }
    }
    if interruptEnable.contains(.transmitterHoldingRegisterEmpty), transmitterInterrupt {
      return .transmitterHoldingRegisterEmpty
    }
    if interruptEnable.contains(.modemStatus), !modemStatus.isDisjoint(with: .deltas) { return .modemStatus }
    return .none
  }

  private mutating func takeInterruptIdentification() -> UInt8 {
    let identification = interruptIdentification
    if identification == .transmitterHoldingRegisterEmpty { transmitterInterrupt = false }
    return identification.rawValue | (fifosEnabled ? 0xc0 : 0)
  }

  private mutating func enableInterrupts(_ new: InterruptEnable) {
    // Enabling the interrupt while the transmitter is empty raises it: drivers start transmission this way.
    if heldCount == 0, new.subtracting(interruptEnable).contains(.transmitterHoldingRegisterEmpty) {
      transmitterInterrupt = true
    }
    interruptEnable = new
  }

  // MARK: Transmitter

  /// The byte to send next.
  var nextToSend: UInt8? { heldCount > 0 ? held[heldFirst] : nil }

  /// Removes the byte that was sent.
  mutating func sent() {
    guard heldCount > 0 else { return }
    heldFirst = (heldFirst + 1) % Self.fifoDepth
    heldCount -= 1
    if heldCount == 0 { transmitterInterrupt = true }
  }

  private mutating func transmit(_ byte: UInt8, _ effects: inout Effects) {
    transmitterInterrupt = false
    if !interrupt { effects.interruptFell = true }
    if modemControl.contains(.loop) {
      accept(byte)
      if heldCount == 0 { transmitterInterrupt = true }
    } else if heldCount < (fifosEnabled ? Self.fifoDepth : 1) {
      held[(heldFirst + heldCount) % Self.fifoDepth] = byte
      heldCount += 1
    } else if !fifosEnabled {
      // A full FIFO keeps its bytes; the single holding register is overwritten.
      held[heldFirst] = byte
    }
  }

  private mutating func dropHeld() {
    if heldCount > 0 { transmitterInterrupt = true }
    heldCount = 0
  }

  // MARK: Data

  /// LCR bit 7 (DLAB): offsets 0 and 1 are the divisor.
  private var divisorLatchAccess: Bool { lineControl & 0x80 != 0 }

  private var fifosEnabled: Bool { fifoControl.contains(.enable) }
  private var receiverCapacity: Int { fifosEnabled ? Self.fifoDepth : 1 }
  private var receiverTrigger: Int { fifosEnabled ? fifoControl.receiverTrigger : 1 }

  private mutating func accept(_ byte: UInt8) {
    if receivedCount < receiverCapacity {
      received[(receivedFirst + receivedCount) % Self.fifoDepth] = byte
      receivedCount += 1
    } else {
      overrun = true
      // A full FIFO keeps its bytes; the single holding register is overwritten.
      if !fifosEnabled { received[receivedFirst] = byte }
    }
  }

  private mutating func takeReceived(_ effects: inout Effects) -> UInt8 {
    guard receivedCount > 0 else { return 0 }
    let byte = received[receivedFirst]
    receivedFirst = (receivedFirst + 1) % Self.fifoDepth
    receivedCount -= 1
    // The read ends a character timeout; the remaining bytes start a new one.
    if identification(timeoutElapsed: false) == .none { effects.interruptFell = true }
    return byte
  }

  private mutating func controlFIFOs(_ new: FIFOControl) {
    let toggled = new.contains(.enable) != fifosEnabled
    if toggled || new.isSuperset(of: [.enable, .receiverReset]) { receivedCount = 0 }
    if toggled || new.isSuperset(of: [.enable, .transmitterReset]) { dropHeld() }
    // The chip ignores the other bits unless the enable bit is set.
    fifoControl = new.contains(.enable) ? new : FIFOControl(rawValue: 0)
  }

  private mutating func takeLineStatus() -> UInt8 {
    var status: LineStatus = heldCount == 0 ? [.transmitterHoldingRegisterEmpty, .transmitterEmpty] : []
    if receivedCount > 0 { status.insert(.dataReady) }
    if overrun { status.insert(.overrunError) }
    overrun = false
    return status.rawValue
  }

  // MARK: Modem

  private mutating func updateModemInputs() {
    let inputs = modemControl.contains(.loop) ? loopedInputs : Self.peer
    let changed = inputs.symmetricDifference(modemStatus.subtracting(.deltas))
    var deltas: ModemStatus = modemStatus.intersection(.deltas)
    if changed.contains(.clearToSend) { deltas.insert(.deltaClearToSend) }
    if changed.contains(.dataSetReady) { deltas.insert(.deltaDataSetReady) }
    if changed.contains(.ringIndicator), !inputs.contains(.ringIndicator) {
      deltas.insert(.trailingEdgeRingIndicator)
    }
    if changed.contains(.dataCarrierDetect) { deltas.insert(.deltaDataCarrierDetect) }
    modemStatus = inputs.union(deltas)
  }

  /// In loopback the four modem outputs drive the inputs.
  private var loopedInputs: ModemStatus {
    var inputs: ModemStatus = []
    if modemControl.contains(.requestToSend) { inputs.insert(.clearToSend) }
    if modemControl.contains(.dataTerminalReady) { inputs.insert(.dataSetReady) }
    if modemControl.contains(.out1) { inputs.insert(.ringIndicator) }
    if modemControl.contains(.out2) { inputs.insert(.dataCarrierDetect) }
    return inputs
  }

  private mutating func takeModemStatus() -> UInt8 {
    defer { modemStatus.subtract(.deltas) }
    return modemStatus.rawValue
  }
}
