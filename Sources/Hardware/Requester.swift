import Synchronization

/// A function in its role as the source of requests: its address, its Bus Master Enable, and that of the bridge above.
///
/// Configuration writes change both while other threads make requests, so each is atomic.
public final class Requester: Sendable {
  private let identifier: Atomic<UInt16>
  private let busMaster = Atomic<Bool>(false)
  private let masterAborted = Atomic<Bool>(false)
  private let upstream: Requester?

  /// - Parameter upstream: the bridge above, whose Bus Master Enable lets requests from below pass; nil on bus 0.
  public init(id: RequesterID, busMasterEnable: Bool = false, upstream: Requester? = nil) {
    self.upstream = upstream
    identifier = Atomic(id.rawValue)
    busMaster.store(busMasterEnable, ordering: .relaxed)
  }

  public var id: RequesterID {
    get { RequesterID(rawValue: identifier.load(ordering: .relaxed)) }
    set { identifier.store(newValue.rawValue, ordering: .relaxed) }
  }

  /// Command register bit 2 (BME): without it no request leaves the function. Reads as clear while that of a bridge above
  /// is.
  public var busMasterEnable: Bool {
    get { busMaster.load(ordering: .acquiring) && upstream?.busMasterEnable != false }
    set { busMaster.store(newValue, ordering: .releasing) }
  }

  /// A request of the function found nothing at its address: Unsupported Request, on a conventional bus Master-Abort.
  public func receiveMasterAbort() { masterAborted.store(true, ordering: .releasing) }

  /// Whether there was one since the last call; for Received Master Abort, Status register bit 13.
  public func takeMasterAbort() -> Bool {
    // A read alone while there is none, as nearly always.
    masterAborted.load(ordering: .relaxed) && masterAborted.exchange(false, ordering: .acquiring)
  }
}
