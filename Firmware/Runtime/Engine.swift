/// Nestling's `dma-engine` from its driver's side (Sources/Devices/Test/DMAEngineRegisters describes its registers):
/// requests with PASID, translation requests and translated requests, page requests.

struct Engine {
  private static let identity: UInt32 = 0x11e9_1234
  private static let isBusy: UInt32 = 1

  enum Register {
    static let control: UInt64 = 0x08
    static let status: UInt64 = 0x0c
    static let command: UInt64 = 0x10
    static let pasid: UInt64 = 0x14
    static let source: UInt64 = 0x18
    static let destination: UInt64 = 0x20
    static let count: UInt64 = 0x28
    static let translated: UInt64 = 0x40
    static let rights: UInt64 = 0x48
    static let response: UInt64 = 0x4c
    static let responsePASID: UInt64 = 0x50
    static let responses: UInt64 = 0x54
    static let pageRequests: UInt64 = 0x58
    static let invalidations: UInt64 = 0x5c
    static let invalidatedFirst: UInt64 = 0x60
    static let invalidatedLast: UInt64 = 0x68
    static let invalidatedPASID: UInt64 = 0x70
    static let held: UInt64 = 0x74
    static let cached: UInt64 = 0x78
  }

  enum Operation {
    static let copy: UInt32 = 3
    static let translate: UInt32 = 4
    static let request: UInt32 = 5
    static let stop: UInt32 = 6
  }

  /// Flags of a command.
  static let withPASID: UInt32 = 1 << 4
  static let privileged: UInt32 = 1 << 5
  static let execute: UInt32 = 1 << 6
  static let noWrite: UInt32 = 1 << 7
  static let byCache: UInt32 = 1 << 8
  static let translated: UInt32 = 1 << 9
  static let requestPages: UInt32 = 1 << 10
  static let read: UInt32 = 1 << 12
  static let write: UInt32 = 1 << 13
  static let lastInGroup: UInt32 = 1 << 14

  enum Result {
    static let success: UInt32 = 1
    static let notEnabled: UInt32 = 4
    static let refused: UInt32 = 5
    static let unsupportedRequest: UInt32 = 7
    static let completerAbort: UInt32 = 8
    static let notGranted: UInt32 = 9
    static let invalidRequest: UInt32 = 10
    static let responseFailure: UInt32 = 11
  }

  /// Values of CONTROL: how the engine answers invalidations.
  enum Answer {
    static let atOnce: UInt32 = 0
    static let later: UInt32 = 1
    static let never: UInt32 = 2
    static let wrongly: UInt32 = 3
    static let heldNow: UInt32 = 1 << 9
  }

  let function: Function
  private let window: UInt64
  private let base: UInt64

  /// Returns the first engine on bus 0, with memory decoding and bus mastering on.
  static func find() -> Engine? {
    guard let window = EnhancedConfiguration.window else { return nil }
    for device in 1..<UInt32(31) {
      let function = Function(device: device, number: 0)
      guard function.readPort(0) == identity else { continue }
      function.writePort(4, function.readPort(4) & 0xffff | 0x6)
      return Engine(function: function, window: window, base: UInt64(function.readPort(0x10) & ~0xf))
    }
    return nil
  }

  var source: UInt64 { UInt64(function.index) }

  func get(_ register: UInt64) -> UInt32 { load32(base + register) }
  func get64(_ register: UInt64) -> UInt64 { load64(base + register) }
  func set(_ register: UInt64, _ value: UInt32) { store32(base + register, value) }

  // MARK: Capabilities

  /// Returns the address of an extended capability in the configuration window; nil if there is none.
  func capability(_ identifier: UInt32) -> UInt64? {
    var at: UInt32 = 0x100
    while at >= 0x100 {
      let header = load32(function.address(window, at))
      if header & 0xffff == identifier { return function.address(window, at) }
      at = header >> 20
    }
    return nil
  }

  var hasCapabilities: Bool { capability(0x0f) != nil && capability(0x13) != nil && capability(0x1b) != nil }

  /// Enables PASID, with execute and privileged requests.
  func enablePASID(_ isOn: Bool = true) {
    if let at = capability(0x1b) { store16(at + 6, isOn ? 0x7 : 0) }
  }
  /// Enables ATS, with pages of 4 KiB and more.
  func enableTranslation(_ isOn: Bool = true) {
    if let at = capability(0x0f) { store16(at + 6, isOn ? 0x8000 : 0) }
  }
  /// Enables PRI, with the largest number of outstanding requests.
  func enablePageRequests(_ isOn: Bool = true) {
    guard let at = capability(0x13) else { return }
    store32(at + 12, 32)
    store16(at + 4, isOn ? 1 : 0)
  }

  // MARK: Commands

  func begin(
    _ command: UInt32, pasid: UInt64 = 0, from source: UInt64 = 0, to destination: UInt64 = 0, count: UInt64 = 8
  ) {
    store32(base + Register.pasid, UInt32(truncatingIfNeeded: pasid))
    store64(base + Register.source, source)
    store64(base + Register.destination, destination)
    store64(base + Register.count, count)
    store32(base + Register.command, command)
  }

  /// Waits for the end of a command.
  /// - Returns: the result; 0 if the command does not end.
  func end() -> UInt32 {
    guard wait(ticks: RemappingUnit.patience, until: { get(Register.status) & Self.isBusy == 0 }) else { return 0 }
    return get(Register.status) >> 8 & 0xff
  }

  func run(
    _ command: UInt32, pasid: UInt64 = 0, from source: UInt64 = 0, to destination: UInt64 = 0, count: UInt64 = 8
  ) -> UInt32 {
    begin(command, pasid: pasid, from: source, to: destination, count: count)
    return end()
  }
}
