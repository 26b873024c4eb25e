import Hardware

/// Finds out whether a miss that the unit refuses is current or out of date.
///
/// The kernel sends a miss each time that a ring tries to continue: for each kick and each packet, and some kernels
/// without a pause. So one address can be in its queue several times. The first answer lets the ring continue, the
/// driver gets its buffer back and unmaps it, and then the unit refuses the other misses, although no request is at
/// fault.
///
/// So a refused miss has no consequence at first. When the queue is empty, the rings are kicked, and ask again for what
/// they still need. An address that is refused then is a fault: since the queue was empty, no answer has let the ring
/// continue.
///
/// The queue may never be empty by itself, and the kernel keeps each miss until a translation answers it. So after some
/// hundreds of refused misses the rings pause until the queue is empty, and the kernel frees what it keeps.
struct RefusedMisses {
  private struct Miss {
    var address: UInt64
    /// Whether the queue was emptied since the refusal.
    var isOld = false
  }

  /// More than the addresses that two rings can wait for at a time: of each, three areas and a buffer. If out-of-date
  /// misses push out a current one, it only has to come once more.
  private static let limit = 16
  private var misses: [Miss] = []
  /// The refused misses since the last pause.
  private var kept = 0
  private static let keptLimit = 256
  /// Whether the queue of misses is being emptied.
  private(set) var isDraining = false

  init() { misses.reserveCapacity(Self.limit) }

  /// Whether a refusal of the address is a fault of a ring's request.
  func isRepeated(_ address: UInt64) -> Bool { misses.contains { $0.address == address && $0.isOld } }

  /// Notes that an address was refused.
  /// - Returns: whether the rings must pause.
  mutating func add(_ address: UInt64) -> Bool {
    kept += 1
    if misses.contains(where: { $0.address == address }) { return kept >= Self.keptLimit }
    if misses.count == Self.limit { misses.removeFirst() }
    misses.append(Miss(address: address))
    return kept >= Self.keptLimit
  }

  /// Forgets the addresses that have a translation now.
  mutating func remove(_ range: DMARange) {
    if !misses.isEmpty { misses.removeAll { range.contains($0.address) } }
  }

  /// Forgets the addresses of the session before.
  mutating func removeAll() { misses.removeAll(keepingCapacity: true) }

  /// Notes that the rings have paused until the queue is empty.
  mutating func beginDraining() { isDraining = true }

  /// What the owner of the rings does when the queue is empty.
  enum Consequence {
    case nothing, kick, resume
  }

  /// Notes that the queue is empty.
  mutating func queueIsEmpty() -> Consequence {
    var consequence = Consequence.nothing
    for index in misses.indices where !misses[index].isOld {
      misses[index].isOld = true
      consequence = .kick
    }
    guard isDraining else { return consequence }
    (isDraining, kept) = (false, 0)
    return .resume
  }
}
