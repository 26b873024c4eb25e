// The two ends of the path of a function's requests and messages: `RequestPort` is the root complex as the function
// sees it, and `TranslationCache` is the function as the root complex sees it.

/// The source of a function's ports: an IOMMU, or the board if there is none.
public protocol DMARemapper: AnyObject, Sendable {
  /// Makes a port for requests without PASID.
  func makePort(for requester: Requester) -> any DMAPort

  /// Makes a port that also takes requests with PASID, translation requests and page requests.
  func makeRequestPort(for requester: Requester) -> any RequestPort

  /// Connects the cache of a remote datapath that acts for a function. The cache must be empty.
  /// - Returns: nil without an IOMMU.
  func connect(_ remote: any RemoteIOTLB, for requester: Requester) -> (any RemoteDMAPort)?
}

/// All requests that one function can send to the root complex.
public protocol RequestPort: AnyObject, Sendable {
  /// Returns the port for untranslated requests. It ignores Execute Requested of the prefix, because each access states
  /// that in its `DMAAccess`.
  func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort

  /// The port for requests with translated addresses (AT 10b).
  var translatedPort: any DMAPort { get }

  /// Sends a translation request (AT 01b) for the page that contains `address`.
  /// - Parameter noWrite: NW: the function will not write to the page.
  func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion

  func requestPage(_ request: PageRequest) -> PageRequestOutcome

  /// Sends an Invalidate Completion message.
  /// - Parameter tags: bit n set: the request with tag n is complete.
  func completeInvalidations(_ tags: UInt32)

  /// Directs invalidations and page responses to `cache`. nil disconnects the cache and completes its outstanding
  /// invalidations.
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

/// A function with its own translation cache (ATC), as the root complex sees it.
public protocol TranslationCache: AnyObject, Sendable {
  /// Invalidates cached translations. When no request uses them any more, the function calls
  /// `RequestPort.completeInvalidations` with the tag: either within this call, or later on another thread that holds
  /// no request in flight. Must not wait for anything that software controls.
  func invalidate(_ request: InvalidateRequest)

  /// Receives the response to a group of page requests.
  func receive(_ response: PageGroupResponse)
}
