import Synchronization

/// A function in its role as the source of requests: its address and its Bus Master Enable.
///
/// Configuration writes change both while other threads make requests, so each is atomic.
public final class Requester: Sendable {
  private let identifier: Atomic<UInt16>
  private let busMaster = Atomic<Bool>(false)

  public init(id: RequesterID, busMasterEnable: Bool = false) {
    identifier = Atomic(id.rawValue)
    busMaster.store(busMasterEnable, ordering: .relaxed)
  }

  public var id: RequesterID {
    get { RequesterID(rawValue: identifier.load(ordering: .relaxed)) }
    set { identifier.store(newValue.rawValue, ordering: .relaxed) }
  }

  /// Command register bit 2 (BME): without it no request leaves the function.
  public var busMasterEnable: Bool {
    get { busMaster.load(ordering: .acquiring) }
    set { busMaster.store(newValue, ordering: .releasing) }
  }
}
