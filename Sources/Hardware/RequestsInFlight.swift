import Synchronization

/// The requests of one port that are on their way: translated, and not yet done with the memory they go to.
///
/// Whoever takes a translation, or the function itself, away does so first and calls `drain` then: when that returns,
/// no request goes by what was taken away any more (VT-d 6.5.5, "Draining of requests to memory"). A request is
/// counted in the phase it begins in; a drain begins another phase and waits for the old one's requests, so those that
/// begin later do not hold it up. Beginning and ending cost one atomic addition each.
public final class RequestsInFlight: Sendable {
  /// The phase that a request began in. To be given back to `end`, once.
  public struct Phase: Sendable {
    fileprivate let isOdd: Bool
  }

  /// phase[63], requests begun in it[62:0]. One word, so that a request is counted in the phase that it finds.
  private let begun = Atomic<UInt64>(0)
  /// Requests that ended, by the phase they began in.
  private let endedEven = Atomic<UInt64>(0)
  private let endedOdd = Atomic<UInt64>(0)
  /// A drain sleeps, or is about to.
  private let isAwaited = Atomic<Bool>(false)
  /// Where.
  private let sleeper = Mutex<(any Parking)?>(nil)
  /// Drains come one after the other.
  private let draining = Mutex<Void>(())

  public init() {}

  /// To be called before the request is translated.
  public func begin() -> Phase {
    Phase(isOdd: begun.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue[bit: 63])
  }

  public func end(_ phase: Phase) {
    if phase.isOdd {
      endedOdd.wrappingAdd(1, ordering: .sequentiallyConsistent)
    } else {
      endedEven.wrappingAdd(1, ordering: .sequentiallyConsistent)
    }
    // After the addition, as the drain looks at the sum after it said that it waits: one of the two sees the other.
    if isAwaited.load(ordering: .sequentiallyConsistent) { sleeper.withLock { $0 }?.unpark() }
  }

  /// Returns when every request that began before the call has ended.
  ///
  /// Not to be called by who holds a request of this port, nor with a lock that a request in flight may want.
  /// - Parameter parking: where to sleep; no other thread sleeps there meanwhile.
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
      // For the next phase of this kind; its requests begin after the next exchange.
      if isOdd { endedOdd.store(0, ordering: .relaxed) } else { endedEven.store(0, ordering: .relaxed) }
    }
  }

  private func ended(_ isOdd: Bool) -> UInt64 {
    isOdd ? endedOdd.load(ordering: .sequentiallyConsistent) : endedEven.load(ordering: .sequentiallyConsistent)
  }
}

/// A request in flight for as long as the value exists: for work that goes on after the translation, like a transfer
/// of a file into translated segments. Never to be kept while waiting for something that the guest decides.
public struct RequestInFlight: ~Copyable, Sendable {
  private let requests: RequestsInFlight
  private let phase: RequestsInFlight.Phase

  public init(_ requests: RequestsInFlight) {
    self.requests = requests
    phase = requests.begin()
  }

  /// Ends it where it reads well; otherwise it ends with its scope.
  public consuming func end() {}

  deinit { requests.end(phase) }
}

/// A place where one thread sleeps until another wakes it. The guest's side makes no system calls, so the host
/// provides it.
public protocol Parking: AnyObject, Sendable {
  /// Sleeps until `unpark` is called, or was called since the last time. May return without.
  func park()
  func unpark()
}
