// What a function with PASIDs and a translation cache of its own asks of the root complex, and what that asks of it:
// requests with a PASID, Address Translation Services and the Page Request Interface (PCI Express Base 6.20, 10).

extension DMAAccess {
  /// The read is for instructions: Execute Requested of the PASID prefix. Together with `read`.
  public static let execute = DMAAccess(rawValue: 4)
}

/// The PASID TLP prefix of a request: PCI Express Base 6.20.2.
public struct PASIDPrefix: Hashable, Sendable {
  /// 20 bits.
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

/// The page that a translation request was answered: PCI Express Base 10.2.3.
public struct DeviceTranslation: Hashable, Sendable {
  /// First translated address of the page.
  public var address: UInt64
  /// Log2 of the page's size in bytes, 12 or more.
  public var shift: Int
  public var isReadable: Bool
  public var isWritable: Bool
  /// Exe.
  public var isExecutable: Bool
  /// Priv: the rights are those of privileged requests.
  public var isPrivileged: Bool
  /// U: the page is to be accessed by untranslated requests only.
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

  /// The answer for a page without any access: nothing of it may be cached but that.
  public static func noAccess(isPrivileged: Bool = false) -> DeviceTranslation {
    DeviceTranslation(address: 0, shift: 12, isReadable: false, isWritable: false, isPrivileged: isPrivileged)
  }
}

public enum TranslationCompletion: Hashable, Sendable {
  case success(DeviceTranslation)
  /// UR: the function is not to ask, as it is set up.
  case unsupportedRequest
  /// CA: an error on the way.
  case completerAbort
}

/// A Page Request message: PCI Express Base 10.4.1.
public struct PageRequest: Hashable, Sendable {
  /// Of the page; bits 11:0 are ignored.
  public var address: UInt64
  public var prefix: PASIDPrefix?
  public var reads: Bool
  public var writes: Bool
  /// L: the last request in its group, to which there will be a response.
  public var isLastInGroup: Bool
  /// 9 bits.
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

  /// The Stop Marker for a PASID, after which the function asks for no page of it (10.4.1.2). It has no response.
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

    /// Other codes are to be taken for a failure.
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

/// What became of a page request at the root complex.
public enum PageRequestOutcome: Hashable, Sendable {
  /// Software sees it.
  case queued
  /// The root complex answers by itself; only the last of a group is answered.
  case answered(PageGroupResponse.Code)
  /// Nobody sees it, and there is no response.
  case discarded
}

/// An Invalidate Request message: PCI Express Base 10.3.1.
public struct InvalidateRequest: Hashable, Sendable {
  /// ITag: 0 to 31.
  public var tag: UInt8
  /// nil: requests without PASID, or with `isGlobal` every PASID.
  public var pasid: UInt32?
  /// Global Invalidate.
  public var isGlobal: Bool
  public var first: UInt64
  /// Inclusive.
  public var last: UInt64

  public init(tag: UInt8, pasid: UInt32?, isGlobal: Bool, first: UInt64, last: UInt64) {
    self.tag = tag
    self.pasid = pasid
    self.isGlobal = isGlobal
    self.first = first
    self.last = last
  }
}

/// A function with a translation cache of its own (ATC), as the root complex sees it.
public protocol TranslationCache: AnyObject, Sendable {
  /// Something cached is not valid any more. When no request goes by it, the function calls
  /// `RequestPort.completeInvalidations` with the tag: before this returns, or later on another thread, then without a
  /// request in flight. Must not wait for anything that software decides.
  func invalidate(_ request: InvalidateRequest)

  /// A response to page requests came.
  func receive(_ response: PageGroupResponse)
}

/// All that one function can ask of memory and of who translates for it.
public protocol RequestPort: AnyObject, Sendable {
  /// The port of untranslated requests. Execute Requested is not the port's: each access says it.
  func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort

  /// The port of requests whose addresses are translated (AT 10b).
  var translatedPort: any DMAPort { get }

  /// A translation request (AT 01b) for the page that has `address`.
  /// - Parameter noWrite: NW: the page will not be written.
  func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion

  func requestPage(_ request: PageRequest) -> PageRequestOutcome

  /// The Invalidate Completion message.
  /// - Parameter tags: bit n: the request with tag n is complete.
  func completeInvalidations(_ tags: UInt32)

  /// From now on invalidations and page responses go to `cache`; nil takes it back, and answers what it did not.
  func connect(_ cache: (any TranslationCache)?)

  /// As `RequestsInFlight.drain`, for all requests of the port, those to translate included. The function makes no new
  /// ones.
  func drain(parking: any Parking)
}

extension RequestPort {
  public func drain(parking: any Parking) {
    dmaPort(for: nil).inFlight.drain(parking: parking)
    translatedPort.inFlight.drain(parking: parking)
  }
}

extension DMARemapper {
  /// Without translation services: requests without PASID go where they say, all others are refused.
  public func makeRequestPort(for requester: Requester) -> any RequestPort {
    UntranslatedRequestPort(makePort(for: requester))
  }
}

/// The requests of a function for which nobody translates: a root complex without ATS.
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

/// A port whose requests are all refused.
final class RefusingDMAPort: DMAPort {
  let memory: any PhysicalMemory
  let inFlight = RequestsInFlight()

  init(memory: any PhysicalMemory) { self.memory = memory }

  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    throw .translation
  }
}
