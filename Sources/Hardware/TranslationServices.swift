// Messages between a root complex and a function that has PASIDs and its own translation cache: requests with a PASID,
// Address Translation Services, and the Page Request Interface (PCI Express Base 6.20, 10).

extension DMAAccess {
  /// The read fetches instructions: Execute Requested of the PASID prefix. Used together with `read`.
  public static let execute = DMAAccess(rawValue: 4)
}

/// The PASID TLP prefix of a request: PCI Express Base 6.20.2.
public struct PASIDPrefix: Hashable, Sendable {
  /// The PASID: 20 bits.
  public var pasid: UInt32
  /// Privileged Mode Requested (PR).
  public var isPrivileged: Bool
  /// Execute Requested (ER).
  public var executes: Bool

  public init(pasid: UInt32, isPrivileged: Bool = false, executes: Bool = false) {
    self.pasid = pasid & 0xf_ffff
    self.isPrivileged = isPrivileged
    self.executes = executes
  }
}

/// The page in the completion of a translation request: PCI Express Base 10.2.3.
public struct DeviceTranslation: Hashable, Sendable {
  /// The first translated address of the page.
  public var address: UInt64
  /// Log2 of the page's size in bytes, 12 or more.
  public var shift: Int
  public var isReadable: Bool
  public var isWritable: Bool
  /// Exe: instruction fetches are permitted.
  public var isExecutable: Bool
  /// Priv: the rights apply to privileged requests.
  public var isPrivileged: Bool
  /// U: only untranslated requests may access the page.
  public var isUntranslatedOnly: Bool
  /// N: accesses are not snooped.
  public var isNonSnooped: Bool

  public init(
    address: UInt64, shift: Int, isReadable: Bool, isWritable: Bool, isExecutable: Bool = false,
    isPrivileged: Bool = false, isUntranslatedOnly: Bool = false, isNonSnooped: Bool = false
  ) {
    self.address = address
    self.shift = shift
    self.isReadable = isReadable
    self.isWritable = isWritable
    self.isExecutable = isExecutable
    self.isPrivileged = isPrivileged
    self.isUntranslatedOnly = isUntranslatedOnly
    self.isNonSnooped = isNonSnooped
  }

  /// Returns the completion for a page without access rights. The function may cache only the lack of rights.
  public static func noAccess(isPrivileged: Bool = false) -> DeviceTranslation {
    DeviceTranslation(address: 0, shift: 12, isReadable: false, isWritable: false, isPrivileged: isPrivileged)
  }
}

/// The completion of a translation request.
public enum TranslationCompletion: Hashable, Sendable {
  case success(DeviceTranslation)
  /// UR: software does not permit translation requests of this function.
  case unsupportedRequest
  /// CA: an error occurred during the translation.
  case completerAbort
}

/// A Page Request message: PCI Express Base 10.4.1.
public struct PageRequest: Hashable, Sendable {
  /// The page's address; bits 11:0 are ignored.
  public var address: UInt64
  public var prefix: PASIDPrefix?
  public var reads: Bool
  public var writes: Bool
  /// L: this is the last request of its group. The group's response follows it.
  public var isLastInGroup: Bool
  /// Page Request Group Index: 9 bits.
  public var groupIndex: UInt16

  public init(
    address: UInt64, prefix: PASIDPrefix?, reads: Bool, writes: Bool, isLastInGroup: Bool, groupIndex: UInt16
  ) {
    self.address = address
    self.prefix = prefix
    self.reads = reads
    self.writes = writes
    self.isLastInGroup = isLastInGroup
    self.groupIndex = groupIndex & 0x1ff
  }

  /// Returns the Stop Marker for a PASID: the function requests no more pages with this PASID (10.4.1.2). It has no
  /// response.
  public static func stopMarker(pasid: UInt32) -> PageRequest {
    PageRequest(
      address: 0, prefix: PASIDPrefix(pasid: pasid), reads: false, writes: false, isLastInGroup: true, groupIndex: 0)
  }

  public var isStopMarker: Bool { !reads && !writes && isLastInGroup && prefix != nil }
}

/// A PRG Response message: PCI Express Base 10.4.2.
public struct PageGroupResponse: Hashable, Sendable {
  public enum Code: UInt8, Sendable {
    case success = 0
    case invalidRequest = 1
    case responseFailure = 15

    /// Decodes the field. Reserved codes count as a failure.
    public init(field: UInt8) { self = Code(rawValue: field & 15) ?? .responseFailure }
  }

  public var code: Code
  public var groupIndex: UInt16
  public var pasid: UInt32?

  public init(code: Code, groupIndex: UInt16, pasid: UInt32?) {
    self.code = code
    self.groupIndex = groupIndex
    self.pasid = pasid
  }
}

/// What the root complex does with a page request.
public enum PageRequestOutcome: Hashable, Sendable {
  /// Software receives it.
  case queued
  /// The root complex itself responds. It does so only to the last request of a group.
  case answered(PageGroupResponse.Code)
  /// The root complex drops it, and no response follows.
  case discarded
}

/// An Invalidate Request message: PCI Express Base 10.3.1.
public struct InvalidateRequest: Hashable, Sendable {
  /// ITag: 0 to 31.
  public var tag: UInt8
  /// The PASID whose translations become invalid; nil for requests without PASID, or for every PASID if `isGlobal`.
  public var pasid: UInt32?
  /// Global Invalidate.
  public var isGlobal: Bool
  public var first: UInt64
  /// The last address of the range, inclusive.
  public var last: UInt64

  public init(tag: UInt8, pasid: UInt32?, isGlobal: Bool, first: UInt64, last: UInt64) {
    self.tag = tag
    self.pasid = pasid
    self.isGlobal = isGlobal
    self.first = first
    self.last = last
  }
}

/// A function with its own translation cache (ATC), as the root complex sees it.
public protocol TranslationCache: AnyObject, Sendable {
  /// Invalidates cached translations. Once no request uses them any more, the function calls
  /// `RequestPort.completeInvalidations` with the tag: either before this returns, or later on another thread that holds
  /// no request in flight. Must not wait for anything that software controls.
  func invalidate(_ request: InvalidateRequest)

  /// Receives the response to a group of page requests.
  func receive(_ response: PageGroupResponse)
}

/// All requests that one function can send to the root complex.
public protocol RequestPort: AnyObject, Sendable {
  /// Returns the port for untranslated requests. It ignores Execute Requested of the prefix, which each access states in
  /// its `DMAAccess`.
  func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort

  /// The port for requests with translated addresses (AT 10b).
  var translatedPort: any DMAPort { get }

  /// Sends a translation request (AT 01b) for the page that contains `address`.
  /// - Parameter noWrite: NW: the function will not write to the page.
  func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion

  /// Sends a Page Request message.
  func requestPage(_ request: PageRequest) -> PageRequestOutcome

  /// Sends an Invalidate Completion message.
  /// - Parameter tags: bit n set: the request with tag n is complete.
  func completeInvalidations(_ tags: UInt32)

  /// Directs invalidations and page responses to `cache`. nil disconnects the cache and completes the invalidations that
  /// it has not completed.
  func connect(_ cache: (any TranslationCache)?)

  /// Waits as `RequestsInFlight.drain` does, for all requests of the port, translation requests included. The function
  /// must make no new requests.
  func drain(parking: any Parking)
}

extension RequestPort {
  public func drain(parking: any Parking) {
    dmaPort(for: nil).inFlight.drain(parking: parking)
    translatedPort.inFlight.drain(parking: parking)
  }
}

extension DMARemapper {
  /// Makes a port without translation services: it carries requests without PASID and refuses all others.
  public func makeRequestPort(for requester: Requester) -> any RequestPort {
    UntranslatedRequestPort(makePort(for: requester))
  }
}

/// The request port of a root complex without ATS and PASID.
public final class UntranslatedRequestPort: RequestPort {
  private let port: any DMAPort
  private let refusing: RefusingDMAPort

  public init(_ port: any DMAPort) {
    self.port = port
    refusing = RefusingDMAPort(memory: port.memory)
  }

  public func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort { prefix == nil ? port : refusing }
  public var translatedPort: any DMAPort { refusing }
  public func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion {
    .unsupportedRequest
  }
  public func requestPage(_ request: PageRequest) -> PageRequestOutcome { .discarded }
  public func completeInvalidations(_ tags: UInt32) {}
  public func connect(_ cache: (any TranslationCache)?) {}
}

/// A port that refuses all requests.
final class RefusingDMAPort: DMAPort {
  let memory: any PhysicalMemory
  let inFlight = RequestsInFlight()

  init(memory: any PhysicalMemory) { self.memory = memory }

  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    throw .translation
  }
}
