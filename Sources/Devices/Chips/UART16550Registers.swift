/// The register bits of the 16550A (National Semiconductor PC16550D data sheet, section 8).
extension UART16550 {
  /// IER: the causes that raise INTR.
  struct InterruptEnable: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// ERBFI
    static let receivedDataAvailable = InterruptEnable(rawValue: 0x01)
    /// ETBEI
    static let transmitterHoldingRegisterEmpty = InterruptEnable(rawValue: 0x02)
    /// ELSI
    static let receiverLineStatus = InterruptEnable(rawValue: 0x04)
    /// EDSSI
    static let modemStatus = InterruptEnable(rawValue: 0x08)

    static let implemented = InterruptEnable(rawValue: 0x0f)
  }

  /// IIR bits 3:0: the pending cause of highest priority.
  enum InterruptIdentification: UInt8, Sendable {
    case modemStatus = 0x0
    case none = 0x1
    case transmitterHoldingRegisterEmpty = 0x2
    case receivedDataAvailable = 0x4
    case receiverLineStatus = 0x6
    case characterTimeout = 0xc
  }

  /// FCR.
  struct FIFOControl: OptionSet {
    let rawValue: UInt8

    static let enable = FIFOControl(rawValue: 0x01)
    static let receiverReset = FIFOControl(rawValue: 0x02)
    static let transmitterReset = FIFOControl(rawValue: 0x04)

    /// Bits 7:6: the number of received bytes that raises the interrupt.
    var receiverTrigger: Int { [1, 4, 8, 14][Int(rawValue >> 6)] }
  }

  /// LSR.
  struct LineStatus: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// DR
    static let dataReady = LineStatus(rawValue: 0x01)
    /// OE
    static let overrunError = LineStatus(rawValue: 0x02)
    /// THRE
    static let transmitterHoldingRegisterEmpty = LineStatus(rawValue: 0x20)
    /// TEMT
    static let transmitterEmpty = LineStatus(rawValue: 0x40)
  }

  /// MCR.
  struct ModemControl: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// DTR
    static let dataTerminalReady = ModemControl(rawValue: 0x01)
    /// RTS
    static let requestToSend = ModemControl(rawValue: 0x02)
    static let out1 = ModemControl(rawValue: 0x04)
    static let out2 = ModemControl(rawValue: 0x08)
    static let loop = ModemControl(rawValue: 0x10)

    static let implemented = ModemControl(rawValue: 0x1f)
  }

  /// MSR: the inputs in bits 7:4, and in bits 3:0 their changes since the last read.
  struct ModemStatus: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// DCTS
    static let deltaClearToSend = ModemStatus(rawValue: 0x01)
    /// DDSR
    static let deltaDataSetReady = ModemStatus(rawValue: 0x02)
    /// TERI
    static let trailingEdgeRingIndicator = ModemStatus(rawValue: 0x04)
    /// DDCD
    static let deltaDataCarrierDetect = ModemStatus(rawValue: 0x08)
    /// CTS
    static let clearToSend = ModemStatus(rawValue: 0x10)
    /// DSR
    static let dataSetReady = ModemStatus(rawValue: 0x20)
    /// RI
    static let ringIndicator = ModemStatus(rawValue: 0x40)
    /// DCD
    static let dataCarrierDetect = ModemStatus(rawValue: 0x80)

    static let deltas = ModemStatus(rawValue: 0x0f)
  }
}
