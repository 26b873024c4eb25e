import Hardware

// Invalidations that leave the unit: device-TLB invalidations (VT-d 6.5.2.5, 6.5.2.6) and those of remote IOTLBs. Each
// is outstanding until its receiver completes it, or until its time is over. Meanwhile the unit parks what software
// waits for, so no vCPU has to wait.

/// The completion that software waits for.
enum Completion: Sendable {
  /// - Parameter generation: of the queue that has the descriptor. The queue's head is already past it.
  case wait(InvalidationWait, generation: UInt64)
  case registers(RegisterCompletion)
}

/// The completion of register-based commands.
struct RegisterCompletion: Sendable {
  /// The number of global commands (GCMD).
  var globalCommands = 0
  /// The context command or IOTLB invalidate command. Software writes no second one before the first is complete.
  var context: UnitRegisters.RegisterCommand?
  var iotlb: UnitRegisters.RegisterCommand?

  init(_ effects: UnitRegisters.Effects) {
    if effects.awaitsDrain { globalCommands = 1 }
    switch effects.command?.register {
    case .contextCommand: context = effects.command
    case .iotlbInvalidate: iotlb = effects.command
    case nil: break
    }
  }

  mutating func merge(_ other: RegisterCompletion) {
    globalCommands += other.globalCommands
    context = other.context ?? context
    iotlb = other.iotlb ?? iotlb
  }
}

struct OutstandingInvalidations: Sendable {
  enum Receiver: Sendable {
    case function(RequesterID, tag: UInt8)
    case remote(RemappedRemotePort)

    /// The expirations of the timer after which an invalidation times out.
    var limit: Int {
      switch self {
      case .function: 2
      case .remote: 10
      }
    }

    func isRemote(_ port: RemappedRemotePort) -> Bool {
      if case .remote(let own) = self { own === port } else { false }
    }
  }

  struct Outstanding: Sendable {
    let number: UInt64
    let receiver: Receiver
    /// False for an invalidation of a remote that has not completed an earlier one. Such an invalidation goes out
    /// later.
    var isSent = true
    /// Whether the receiver has the message and did not complete it at once.
    var isAwaited = false
    /// Expirations of the timer since `isAwaited` was set.
    var ticks = 0
  }

  private struct Parked: Sendable {
    var completion: Completion
    /// The number of the last invalidation that must complete first.
    var last: UInt64
  }

  /// In milliseconds. A device-TLB invalidation times out after half a second to a second. Real functions have a minute
  /// (PCI Express Base 10.3.1). Emulated functions answer in microseconds or never, and the guest polls meanwhile. A
  /// remote has 4.5 to 5 seconds: its process may have to wait for a processor. Linux reports a lockup after 20
  /// seconds.
  static let timerPeriod: UInt32 = 500

  /// Ordered by number.
  private(set) var all: [Outstanding] = []
  /// At most one wait descriptor, because the queue stops there, and one merged completion of registers.
  private var parked: [Parked] = []
  private var nextNumber: UInt64 = 1
  private var timerRuns = false

  // MARK: Invalidations

  /// Adds an invalidation.
  /// - Returns: its number.
  mutating func begin(_ receiver: Receiver, isSent: Bool = true) -> UInt64 {
    defer { nextNumber += 1 }
    all.append(Outstanding(number: nextNumber, receiver: receiver, isSent: isSent))
    return nextNumber
  }

  /// Whether an invalidation was sent to a remote and is not complete.
  func isOutstanding(_ number: UInt64, of port: RemappedRemotePort) -> Bool {
    all.contains { $0.number == number && $0.isSent && $0.receiver.isRemote(port) }
  }

  /// Marks an invalidation that the receiver did not complete at once.
  /// - Returns: nil if the invalidation is complete; otherwise whether the caller must start the timer.
  mutating func await(_ number: UInt64) -> Bool? {
    guard let index = all.firstIndex(where: { $0.number == number }) else { return nil }
    all[index].isAwaited = true
    defer { timerRuns = true }
    return !timerRuns
  }

  /// Ends an invalidation.
  /// - Returns: whether its receiver was awaited; nil if it is not outstanding.
  @discardableResult
  mutating func end(_ number: UInt64) -> Bool? {
    all.firstIndex { $0.number == number }.map { all.remove(at: $0).isAwaited }
  }

  mutating func removeAll(where matches: (Outstanding) -> Bool) { all.removeAll(where: matches) }

  // MARK: Remotes

  /// Adds the invalidation that takes a remote's queued ranges. A remote has at most one invalidation that is sent, and
  /// one after it that collects further ranges.
  /// - Returns: its number if the caller must send it now.
  mutating func begin(_ port: RemappedRemotePort) -> UInt64? {
    let count = all.count { $0.receiver.isRemote(port) }
    if count == 0 { return begin(.remote(port)) }
    if count == 1 { _ = begin(.remote(port), isSent: false) }
    return nil
  }

  /// The first invalidation that can go out now, because its remote has completed the earlier one.
  private var indexToSend: Int? {
    all.indices.first { index in
      guard !all[index].isSent, case .remote(let port) = all[index].receiver else { return false }
      return !all[..<index].contains { $0.receiver.isRemote(port) }
    }
  }

  /// Returns an invalidation that the caller must send now.
  mutating func nextToSend() -> (number: UInt64, port: RemappedRemotePort)? {
    guard let index = indexToSend, case .remote(let port) = all[index].receiver else { return nil }
    all[index].isSent = true
    return (all[index].number, port)
  }

  // MARK: Parked completions

  /// Parks a completion while earlier invalidations are outstanding.
  /// - Returns: whether it is parked.
  mutating func park(_ completion: Completion) -> Bool {
    guard let last = all.last?.number else { return false }
    if case .registers(let new) = completion {
      for index in parked.indices {
        guard case .registers(var old) = parked[index].completion else { continue }
        old.merge(new)
        parked[index] = Parked(completion: .registers(old), last: last)
        return true
      }
    }
    parked.append(Parked(completion: completion, last: last))
    return true
  }

  private func isReady(_ parked: Parked) -> Bool { all.first.map { $0.number > parked.last } ?? true }

  /// Whether the queue has work: a completion or an invalidation of a remote.
  var hasWork: Bool { parked.contains(where: isReady) || indexToSend != nil }

  var hasParkedWait: Bool {
    parked.contains { if case .wait = $0.completion { true } else { false } }
  }

  /// Removes and returns the completions that no invalidation precedes.
  mutating func takeReady() -> [Completion] {
    if parked.isEmpty { return [] }
    let ready = parked.filter(isReady).map(\.completion)
    parked.removeAll(where: isReady)
    return ready
  }

  /// Drops a parked wait descriptor of an earlier queue, because software no longer waits for it, or of any queue.
  /// - Parameter generation: the present queue's; nil drops the wait of any queue.
  mutating func dropWait(except generation: UInt64?) {
    parked.removeAll { if case .wait(_, let other) = $0.completion { other != generation } else { false } }
  }

  mutating func dropParked() { parked = [] }

  // MARK: Time

  /// Handles an expiration of the timer. Removes the invalidations of functions that timed out.
  /// - Returns: the first such function, the remotes that timed out, and whether the caller must start the timer again.
  mutating func tick() -> (function: RequesterID?, remotes: [RemappedRemotePort], restarts: Bool) {
    var function: RequesterID?
    var remotes: [RemappedRemotePort] = []
    for index in all.indices where all[index].isAwaited {
      all[index].ticks += 1
      guard all[index].ticks >= all[index].receiver.limit else { continue }
      switch all[index].receiver {
      case .function(let source, _): if function == nil { function = source }
      case .remote(let port):
        remotes.append(port)
        // It stays outstanding until the remote is cut off, but needs no timer.
        all[index].isAwaited = false
      }
    }
    all.removeAll { if case .function = $0.receiver { $0.ticks >= $0.receiver.limit } else { false } }
    timerRuns = all.contains { $0.isAwaited }
    return (function, remotes, timerRuns)
  }
}
