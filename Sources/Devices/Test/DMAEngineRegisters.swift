import Hardware

/// The registers of `dma-engine` (1234:11e9), Nestling's own endpoint for IOMMU features that other test devices do not
/// use: requests with PASID, privilege and execute; address translation (ATS) and translated requests; page requests
/// (PRI); and invalidations that are answered late, wrongly or never.
///
/// The function is a root complex integrated endpoint with Function Level Reset and MSI-X:
/// ```
/// BAR 0   4 KiB  the registers below, and from 0x400 on those of the job slots (`DMAEngineSlot`); aligned accesses of
///                4 or 8 bytes, others read as zero and have no effect
/// BAR 1   4 KiB  MSI-X: 16 vectors, table at 0, pending bits at 0x800
/// BAR 2  64 KiB  the buffer: accesses of any width
/// 0x100          ATS: queue depth 32, page-aligned requests; PRI: 32 outstanding; PASID: 20 bits, execute, privileged
/// ```
/// | offset | register | content |
/// |---|---|---|
/// | 0x00 | ID | RO 0x414d444e ("NDMA") |
/// | 0x04 | VERSION | RO 2 |
/// | 0x08 | CONTROL | 1:0 when to answer invalidations: 0 at once, 1 later (by the worker), 2 never, 3 with a wrong tag; 8 write 1 to end a waiting command, with result 12; 9 write 1 to answer the held invalidations; 8 and 9 read as zero |
/// | 0x0c | STATUS | RO 0 busy; 15:8 result of the last command |
/// | 0x10 | COMMAND | a write while not busy starts a command; see below |
/// | 0x14 | PASID | 19:0 |
/// | 0x18 | SOURCE | 63:0 address to read, translate or request |
/// | 0x20 | DESTINATION | 63:0 address to write |
/// | 0x28 | COUNT | 63:0 bytes: up to the buffer's size for read and write, up to 1 GiB for copy |
/// | 0x30 | OFFSET | 31:0 place in the buffer, for read and write |
/// | 0x34 | VECTOR | 3:0 MSI-X vector of the interrupt at the end of a command |
/// | 0x38 | DONE | RO bytes moved by the last command |
/// | 0x40 | TRANSLATED | RO 63:0 first byte of the page in the completion of the last translate command |
/// | 0x48 | RIGHTS | RO 0 read, 1 write, 2 execute, 3 privileged, 4 untranslated only, 5 non-snooped; 15:8 log2 of the page's size |
/// | 0x4c | RESPONSE | RO the last page group response: 8:0 group index, 15:12 code, 16 with PASID, 31 received since the last command started |
/// | 0x50 | RESPONSE PASID | RO 19:0 |
/// | 0x54 | RESPONSES | RO page group responses received |
/// | 0x58 | PAGE REQUESTS | RO page requests sent |
/// | 0x5c | INVALIDATIONS | RO invalidate requests received |
/// | 0x60 | INVALIDATED FIRST | RO 63:0 first address of the last invalidate request |
/// | 0x68 | INVALIDATED LAST | RO 63:0 last address of the last invalidate request |
/// | 0x70 | INVALIDATED PASID | RO 19:0 PASID of the last invalidate request, 31 it had a PASID |
/// | 0x74 | HELD | RO unanswered invalidate requests |
/// | 0x78 | CACHED | RO pages in the device TLB |
/// | 0x7c | TRANSLATIONS | RO translation requests sent |
/// | 0x80 | SLOTS | RO 7:0 the number of job slots, 16 |
/// | 0x84 | JOBS DONE | RW1C 15:0 bit n: a job of slot n has ended |
///
/// COMMAND: 3:0 operation; 4 with PASID; 5 privileged; 6 execute (reads request execution); 7 no write (NW; translate
/// only); 8 use the device TLB: translate pages through ATS, cache them, and access them with translated requests; 9
/// SOURCE and DESTINATION are translated addresses: use translated requests without ATS; 10 (with 8) if a page does not
/// grant the access, request the page and continue after the response; 11 interrupt at the end; 12 request read access,
/// 13 request write access, 14 last in group (request only); 24:16 group index of page requests. Slot n uses the group
/// indices from 0x100 + 16 n to 0x10f + 16 n, so a command that runs beside jobs uses one below 0x100.
///
/// | operation | effect |
/// |---|---|
/// | 1 read | memory at SOURCE to the buffer |
/// | 2 write | the buffer to memory at DESTINATION; 4 bytes aligned to 4 are a single access, as an interrupt request needs |
/// | 3 copy | memory at SOURCE to memory at DESTINATION |
/// | 4 translate | sends a translation request for the page at SOURCE, even if it is cached, and shows the completion; with 8 also caches it |
/// | 5 request | sends a page request for SOURCE; with 14 the command ends with the response, otherwise at once |
/// | 6 stop | a stop marker for PASID |
///
/// | result | meaning |
/// |---|---|
/// | 0 | none yet |
/// | 1 | success |
/// | 2 | the bits of COMMAND are not a valid combination |
/// | 3 | COUNT or OFFSET is out of range |
/// | 4 | not enabled: Bus Master Enable, or a bit of ATS, PRI or PASID Control |
/// | 5 | the IOMMU refused a request |
/// | 6 | a request did not reach memory, or the transfer wraps past the top of the address space |
/// | 7 | translation: Unsupported Request |
/// | 8 | translation: Completer Abort |
/// | 9 | translation: the page does not grant the access |
/// | 10 | page request: Invalid Request |
/// | 11 | page request: Response Failure |
/// | 12 | ended by CONTROL bit 8, or by bit 1 of a slot's STATUS |
/// | 13 | a page was requested 16 times and still does not grant the access |
struct DMAEngineRegisters: Sendable {
  enum Offset {
    static let identification: UInt64 = 0x00
    static let version: UInt64 = 0x04
    static let control: UInt64 = 0x08
    static let status: UInt64 = 0x0c
    static let command: UInt64 = 0x10
    static let pasid: UInt64 = 0x14
    static let source: UInt64 = 0x18
    static let destination: UInt64 = 0x20
    static let count: UInt64 = 0x28
    static let bufferOffset: UInt64 = 0x30
    static let vector: UInt64 = 0x34
    static let done: UInt64 = 0x38
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
    static let translations: UInt64 = 0x7c
    static let slots: UInt64 = 0x80
    static let jobsDone: UInt64 = 0x84
  }

  enum Operation: UInt32, Sendable {
    case read = 1
    case write = 2
    case copy = 3
    case translate = 4
    case request = 5
    case stop = 6
  }

  enum Result: UInt32, Error, Sendable {
    case none = 0
    case success = 1
    case badCommand = 2
    case badRange = 3
    case notEnabled = 4
    case refused = 5
    case notMemory = 6
    case unsupportedRequest = 7
    case completerAbort = 8
    case notGranted = 9
    case invalidRequest = 10
    case responseFailure = 11
    case ended = 12
    case stillNotGranted = 13
  }

  /// When and how the engine answers invalidate requests.
  enum Answering: UInt32, Sendable {
    case atOnce = 0
    case later = 1
    case never = 2
    case wrongTag = 3
  }

  /// A command with the registers at its start.
  struct Command: Hashable, Sendable {
    let rawValue: UInt32
    var pasidValue: UInt32 = 0
    var source: UInt64 = 0
    var destination: UInt64 = 0
    var count: UInt64 = 0
    var bufferOffset: UInt64 = 0

    var operation: Operation? { Operation(rawValue: rawValue[bits: 0...3]) }
    var pasid: UInt32? { rawValue[bit: 4] ? pasidValue : nil }
    var isPrivileged: Bool { rawValue[bit: 5] }
    var executes: Bool { rawValue[bit: 6] }
    var noWrite: Bool { rawValue[bit: 7] }
    var usesDeviceTLB: Bool { rawValue[bit: 8] }
    var isTranslated: Bool { rawValue[bit: 9] }
    var requestsPages: Bool { rawValue[bit: 10] }
    var interrupts: Bool { rawValue[bit: 11] }
    var wantsRead: Bool { rawValue[bit: 12] }
    var wantsWrite: Bool { rawValue[bit: 13] }
    var isLastInGroup: Bool { rawValue[bit: 14] }
    var groupIndex: UInt16 { UInt16(truncatingIfNeeded: rawValue[bits: 16...24]) }

    /// Whether the flags are a valid combination for the operation.
    var isValid: Bool {
      guard let operation, rawValue & 0xfe00_8000 == 0 else { return false }
      if isPrivileged || executes, pasid == nil { return false }
      if requestsPages, !usesDeviceTLB { return false }
      if isTranslated, usesDeviceTLB || pasid != nil { return false }
      return switch operation {
      case .read, .write, .copy: rawValue & 0x01ff_7080 & ~(requestsPages ? 0x01ff_0000 : 0) == 0
      case .translate: rawValue & 0x01ff_7600 == 0
      case .request: rawValue & 0x0000_0780 == 0
      case .stop: pasid != nil && rawValue & 0x01ff_77e0 == 0
      }
    }
  }

  static let identification: UInt32 = 0x414d_444e
  static let version: UInt32 = 2
  static let bufferSize = 0x10000
  static let maximumCopy: UInt64 = 1 << 30
  /// A power of two: the VECTOR registers are masked.
  static let vectorCount = 16

  private var control: UInt32 = 0
  private var commandBits: UInt32 = 0
  private var pasid: UInt32 = 0
  private var source: UInt64 = 0
  private var destination: UInt64 = 0
  private var count: UInt64 = 0
  private var bufferOffset: UInt32 = 0
  private(set) var vector = 0
  private var isBusy = false
  private var result = Result.none

  // The device updates the registers below as it works.

  var done: UInt64 = 0
  var translated: UInt64 = 0
  var rights: UInt32 = 0
  var responseWord: UInt32 = 0
  var responsePASID: UInt32 = 0
  var responses: UInt32 = 0
  var pageRequests: UInt32 = 0
  var invalidations: UInt32 = 0
  var invalidatedFirst: UInt64 = 0
  var invalidatedLast: UInt64 = 0
  var invalidatedPASID: UInt32 = 0
  var held: UInt32 = 0
  var cached: UInt32 = 0
  var translations: UInt32 = 0
  /// The slots whose jobs have ended.
  var jobsDone: UInt32 = 0

  /// Returns the 4 bytes at a multiple of 4.
  func word(_ offset: UInt64) -> UInt32 {
    func half(_ value: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: offset & 4 == 0 ? value : value >> 32) }
    return switch offset {
    case Offset.identification: Self.identification
    case Offset.version: Self.version
    case Offset.control: control
    case Offset.status: (isBusy ? 1 : 0) | result.rawValue << 8
    case Offset.command: commandBits
    case Offset.pasid: pasid
    case Offset.source, Offset.source + 4: half(source)
    case Offset.destination, Offset.destination + 4: half(destination)
    case Offset.count, Offset.count + 4: half(count)
    case Offset.bufferOffset: bufferOffset
    case Offset.vector: UInt32(truncatingIfNeeded: vector)
    case Offset.done, Offset.done + 4: half(done)
    case Offset.translated, Offset.translated + 4: half(translated)
    case Offset.rights: rights
    case Offset.response: responseWord
    case Offset.responsePASID: responsePASID
    case Offset.responses: responses
    case Offset.pageRequests: pageRequests
    case Offset.invalidations: invalidations
    case Offset.invalidatedFirst, Offset.invalidatedFirst + 4: half(invalidatedFirst)
    case Offset.invalidatedLast, Offset.invalidatedLast + 4: half(invalidatedLast)
    case Offset.invalidatedPASID: invalidatedPASID
    case Offset.held: held
    case Offset.cached: cached
    case Offset.translations: translations
    case Offset.slots: UInt32(DMAEngineSlot.count)
    case Offset.jobsDone: jobsDone
    default: 0
    }
  }

  /// The actions for the device after a write.
  struct Effect: OptionSet, Sendable {
    let rawValue: Int

    /// The worker has something to do.
    static let work = Effect(rawValue: 1 << 0)
    /// CONTROL: end the waiting command.
    static let end = Effect(rawValue: 1 << 1)
    /// CONTROL: answer the held invalidations.
    static let release = Effect(rawValue: 1 << 2)
  }

  /// Writes 4 bytes at a multiple of 4.
  mutating func write(_ offset: UInt64, _ value: UInt32) -> Effect {
    func store(into register: inout UInt64) {
      if offset & 4 == 0 { register[bits: 0...31] = UInt64(value) } else { register[bits: 32...63] = UInt64(value) }
    }
    switch offset {
    case Offset.control:
      control = value & 3
      var effect: Effect = []
      if value[bit: 8] { effect.insert(.end) }
      if value[bit: 9] { effect.insert(.release) }
      return effect
    case Offset.jobsDone: jobsDone &= ~value
    // The parameters of a running command are read-only.
    case _ where isBusy: break
    case Offset.command:
      commandBits = value
      isBusy = true
      done = 0
      responseWord[bit: 31] = false
      return .work
    case Offset.pasid: pasid = value & 0xf_ffff
    case Offset.source, Offset.source + 4: store(into: &source)
    case Offset.destination, Offset.destination + 4: store(into: &destination)
    case Offset.count, Offset.count + 4: store(into: &count)
    case Offset.bufferOffset: bufferOffset = value
    case Offset.vector: vector = Int(value) & (Self.vectorCount - 1)
    default: break
    }
    return []
  }

  var answering: Answering { Answering(rawValue: control & 3) ?? .atOnce }

  /// The running command, if any.
  var running: Command? {
    guard isBusy else { return nil }
    return Command(
      rawValue: commandBits, pasidValue: pasid, source: source, destination: destination, count: count,
      bufferOffset: UInt64(bufferOffset))
  }

  mutating func finish(_ result: Result) {
    isBusy = false
    self.result = result
  }
}
