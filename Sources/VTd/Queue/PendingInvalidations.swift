import Hardware

// The life of an invalidation (VT-d 6.5): the unit applies it to its own caches, drains the requests in flight that may
// use the old entries, and notifies the observers.

/// Invalidations that have been applied to the unit's caches and are not yet complete.
struct PendingInvalidations {
  /// Invalidations that the observers have not received yet, in the guest's order.
  fileprivate var observed: [Invalidation] = []
  /// The subjects of `observed`.
  fileprivate var subjects: InvalidationSubjects = []
  /// Ports whose requests in flight may use invalidated entries.
  fileprivate var ports: [RemappingPort] = []
  /// Remotes that have ranges to lose.
  fileprivate var remotes: [RemappedRemotePort] = []
  /// Whether interrupt requests in flight may use an invalidated entry or table.
  fileprivate var concernsInterrupts = false

  /// Whether the observers must receive the invalidations before the batch is complete, to limit memory.
  var isFull: Bool { observed.count >= 4096 }

  mutating func appendInterruptRemappingChange() {
    concernsInterrupts = true
    append(.interruptRemappingChanged)
  }

  fileprivate mutating func append(_ invalidation: Invalidation) {
    observed.append(invalidation)
    subjects.formUnion(invalidation.subject)
  }

  fileprivate mutating func append(_ port: RemappingPort) {
    if !ports.contains(where: { $0 === port }) { ports.append(port) }
  }

  mutating func append(_ remote: RemappedRemotePort) {
    if !remotes.contains(where: { $0 === remote }) { remotes.append(remote) }
  }
}

/// The observers of a unit's invalidations.
struct InvalidationObservers {
  private(set) var all: [(observer: any InvalidationObserver, subjects: InvalidationSubjects)] = []
  /// The subjects that at least one observer wants.
  fileprivate var subjects: InvalidationSubjects = []

  fileprivate mutating func add(_ observer: any InvalidationObserver, for subjects: InvalidationSubjects) {
    all.append((observer, subjects))
    self.subjects.formUnion(subjects)
  }

  fileprivate mutating func remove(_ observer: any InvalidationObserver) {
    all.removeAll { $0.observer === observer }
    subjects = all.reduce([]) { $0.union($1.subjects) }
  }
}

extension RemappingUnit {
  /// - Parameter subjects: the invalidations that the observer wants.
  public func addObserver(_ observer: any InvalidationObserver, for subjects: InvalidationSubjects = .all) {
    ports.withLock { $0.observers.add(observer, for: subjects) }
  }

  public func removeObserver(_ observer: any InvalidationObserver) { ports.withLock { $0.observers.remove(observer) } }

  func appendTranslationChange(_ pending: inout PendingInvalidations) {
    let remotes = ports.withLock { ports in
      pending.ports = ports.all
      return ports.remotes
    }
    for remote in remotes where remote.lose(.translationChanged) { pending.append(remote) }
    pending.append(.translationChanged)
  }

  /// Applies an invalidation to the unit's own caches, and queues it for the remotes and the observers.
  func apply(_ invalidation: Invalidation, _ pending: inout PendingInvalidations) {
    let counter = invalidation.record(in: trace)
    let concernsPorts: Bool
    switch invalidation {
    case .interruptEntries(let indices):
      concernsPorts = false
      interrupts.invalidate(indices)
      pending.concernsInterrupts = true
    case .deviceTLB, .deviceTLBOfPASID, .translationChanged, .interruptRemappingChanged:
      concernsPorts = false
    default:
      concernsPorts = true
    }
    ports.withLock { ports in
      if concernsPorts {
        for port in ports.all where port.invalidate(invalidation) { pending.append(port) }
        for remote in ports.remotes where remote.lose(invalidation) { pending.append(remote) }
      }
      if let counter { ports.counters.count(counter) }
      if ports.observers.subjects.contains(invalidation.subject) { pending.append(invalidation) }
    }
  }

  /// Completes the pending invalidations: returns when no request in flight uses the old entries, the remotes have
  /// received theirs and the observers have acted. The unit always drains, whether descriptors request it (DR, DW) or
  /// not.
  func complete(_ pending: inout PendingInvalidations) {
    for port in pending.ports { port.inFlight.drain(parking: parking) }
    pending.ports.removeAll(keepingCapacity: true)
    if !pending.remotes.isEmpty { sendToRemotes(&pending) }
    if pending.concernsInterrupts { interruptsInFlight.drain(parking: parking) }
    pending.concernsInterrupts = false
    // A page request that was checked before the invalidation, or before a wait with PD, enters its queue before the
    // return.
    if capabilities.pageRequests { pageRequestsInFlight.drain(parking: parking) }
    notifyObservers(&pending)
  }

  private func sendToRemotes(_ pending: inout PendingInvalidations) {
    for remote in pending.remotes {
      // A miss that used an invalidated entry is installed before the remote receives the invalidation.
      remote.inFlight.drain(parking: parking)
      send(to: remote)
    }
    pending.remotes.removeAll(keepingCapacity: true)
  }

  func notifyObservers(_ pending: inout PendingInvalidations) {
    guard !pending.observed.isEmpty else { return }
    let observers = ports.withLock { $0.observers.all }
    for (observer, subjects) in observers where !subjects.isDisjoint(with: pending.subjects) {
      observer.invalidated(
        subjects.isSuperset(of: pending.subjects)
          ? pending.observed : pending.observed.filter { subjects.contains($0.subject) })
    }
    pending.observed.removeAll(keepingCapacity: true)
    pending.subjects = []
  }
}
