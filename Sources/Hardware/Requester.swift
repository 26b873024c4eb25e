import Synchronization

/// A function in its role as the source of requests: its address, its Bus Master Enable, and that of the bridge above.
///
/// Configuration writes change both while other threads make requests, so each is atomic.
public final class Requester: Sendable {
  private let identifier: Atomic<UInt16>
  /// Bit 0: the function's own Bus Master Enable. Bit 1: revoked.
  private let busMaster = Atomic<UInt8>(0)
  private let masterAborted = Atomic<Bool>(false)
  private let upstream: Requester?

  /// - Parameter upstream: the bridge above, whose Bus Master Enable lets requests from below pass; nil on bus 0.
  public init(id: RequesterID, busMasterEnable: Bool = false, upstream: Requester? = nil) {
    self.upstream = upstream
    identifier = Atomic(id.rawValue)
    if busMasterEnable { busMaster.store(1, ordering: .relaxed) }
  }

  public var id: RequesterID {
    get { RequesterID(rawValue: identifier.load(ordering: .relaxed)) }
    set { identifier.store(newValue.rawValue, ordering: .relaxed) }
  }

  /// Command register bit 2 (BME): without it no request leaves the function. Reads as clear while that of a bridge above
  /// is.
  public var busMasterEnable: Bool {
    get { busMaster.load(ordering: .acquiring) == 1 && upstream?.busMasterEnable != false }
    set {
      if newValue {
        busMaster.bitwiseOr(1, ordering: .releasing)
      } else {
        busMaster.bitwiseAnd(~1, ordering: .releasing)
      }
    }
  }

  /// No request leaves the function any more: `busMasterEnable` is clear for good.
  public func revoke() { busMaster.bitwiseOr(2, ordering: .sequentiallyConsistent) }

  /// A request of the function found nothing at its address: Unsupported Request, on a conventional bus Master-Abort.
  public func receiveMasterAbort() { masterAborted.store(true, ordering: .releasing) }

  /// Whether there was one since the last call; for Received Master Abort, Status register bit 13.
  public func takeMasterAbort() -> Bool {
    // A read alone while there is none, as nearly always.
    masterAborted.load(ordering: .relaxed) && masterAborted.exchange(false, ordering: .acquiring)
  }
}
