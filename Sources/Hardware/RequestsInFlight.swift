import Synchronization

/// The requests of one port that are in flight, from before their translation until their last memory access.
///
/// Code that invalidates a translation, or removes a function, first makes that change and then calls `drain`. When
/// `drain` returns, no request in flight still uses the old state (VT-d 6.5.5, "Draining of requests to memory").
///
/// Each request is counted in the phase in which it begins. A drain starts the other phase and waits for the requests
/// of the old one, so later requests do not delay it. The begin and the end of a request cost one atomic addition each.
public final class RequestsInFlight: Sendable {
  /// The phase in which a request began. The caller passes it to `end`, once.
  public struct Phase: Sendable {
    fileprivate let isOdd: Bool
  }

  /// Bit 63: the current phase; bits 62:0: the number of requests that began in it. One word, so that one addition both
  /// reads the phase and counts the request.
  private let begun = Atomic<UInt64>(0)
  /// The numbers of requests that ended, by the phase in which they began.
  private let endedEven = Atomic<UInt64>(0)
  private let endedOdd = Atomic<UInt64>(0)
  /// Whether a drain sleeps or is about to.
  private let isAwaited = Atomic<Bool>(false)
  /// The place where the drain sleeps.
  private let sleeper = Mutex<(any Parking)?>(nil)
  /// Serializes drains.
  private let draining = Mutex<Void>(())

  public init() {}

  /// Begins a request. Must be called before the request's translation.
  public func begin() -> Phase {
    Phase(isOdd: begun.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue[bit: 63])
  }

  public func end(_ phase: Phase) {
    if phase.isOdd {
      endedOdd.wrappingAdd(1, ordering: .sequentiallyConsistent)
    } else {
      endedEven.wrappingAdd(1, ordering: .sequentiallyConsistent)
    }
    // Add first, then read the flag. The drain sets the flag first, then reads the count. So either this call sees the
    // flag, or the drain sees the new count.
    if isAwaited.load(ordering: .sequentiallyConsistent) { sleeper.withLock { $0 }?.unpark() }
  }

  /// Waits until every request that began before the call has ended.
  ///
  /// Must not be called while holding a request of this port, or a lock that a request in flight may need.
  /// - Parameter parking: the place to sleep. No other thread may sleep there at the same time.
  public func drain(parking: any Parking) {
    draining.withLock { _ in
      let isOdd = begun.load(ordering: .relaxed)[bit: 63]
      let count = begun.exchange(isOdd ? 0 : 1 << 63, ordering: .acquiringAndReleasing) & .lowBits(63)
      if ended(isOdd) != count {
        sleeper.withLock { $0 = parking }
        isAwaited.store(true, ordering: .sequentiallyConsistent)
        while ended(isOdd) != count { parking.park() }
        isAwaited.store(false, ordering: .relaxed)
        sleeper.withLock { $0 = nil }
      }
      // All requests of this phase have ended. None of its parity begins before the next drain, so reset the count.
      if isOdd { endedOdd.store(0, ordering: .relaxed) } else { endedEven.store(0, ordering: .relaxed) }
    }
  }

  private func ended(_ isOdd: Bool) -> UInt64 {
    isOdd ? endedOdd.load(ordering: .sequentiallyConsistent) : endedEven.load(ordering: .sequentiallyConsistent)
  }
}

/// A request that is in flight for as long as the value exists. It covers work after the translation, such as a read of
/// a file into translated segments. Its holder must not wait for anything that the guest controls.
public struct RequestInFlight: ~Copyable, Sendable {
  private let requests: RequestsInFlight
  private let phase: RequestsInFlight.Phase

  public init(_ requests: RequestsInFlight) {
    self.requests = requests
    phase = requests.begin()
  }

  /// Ends the request explicitly. Otherwise it ends with its scope.
  public consuming func end() {}

  deinit { requests.end(phase) }
}
