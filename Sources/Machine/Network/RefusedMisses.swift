import Hardware

/// Finds out whether a miss that the unit refuses is current or out of date.
///
/// The kernel sends a miss each time that a ring tries to continue: for each kick, and for each packet that arrives. So
/// one address can be in its queue several times. The first answer lets the ring continue, the driver gets its buffer
/// back and unmaps it, and then the unit refuses the other misses, although no request is at fault.
///
/// So a refused miss has no consequence at first. When the queue of misses is empty, the rings are kicked, and a ring
/// that still waits for the address sends it again. That miss is current: since the queue was empty, no answer has let
/// the ring continue.
///
/// The kernel keeps each miss until a translation answers it, so refused misses take memory of the host. After some
/// hundreds it must free them.
struct RefusedMisses {
  private struct Miss {
    var address: UInt64
    /// Whether the queue was empty since the refusal.
    var isOld = false
  }

  /// More than the addresses that two rings can wait for at a time: of each, three areas and a buffer. If out-of-date
  /// misses push out a current one, it only has to come once more.
  private static let limit = 16
  private var misses: [Miss] = []
  /// The misses that the kernel may keep.
  private var kept = 0
  private static let keptLimit = 256

  init() { misses.reserveCapacity(Self.limit) }

  /// Whether a refusal of the address is a fault of a ring's request.
  func isRepeated(_ address: UInt64) -> Bool { misses.contains { $0.address == address && $0.isOld } }

  mutating func add(_ address: UInt64) {
    kept += 1
    if misses.contains(where: { $0.address == address }) { return }
    if misses.count == Self.limit { misses.removeFirst() }
    misses.append(Miss(address: address))
  }

  /// Forgets the addresses that have a translation now.
  mutating func remove(_ range: DMARange) {
    if !misses.isEmpty { misses.removeAll { range.contains($0.address) } }
  }

  mutating func removeAll() { misses.removeAll(keepingCapacity: true) }

  /// What the owner of the rings does when the queue of misses is empty.
  enum Consequence {
    case nothing
    /// Kicks the rings.
    case kick
    /// Makes the kernel free the misses that it keeps, and kicks the rings.
    case freeAndKick
  }

  /// Notes that all misses of the queue are answered or refused.
  mutating func queueIsEmpty() -> Consequence {
    var consequence = Consequence.nothing
    for index in misses.indices where !misses[index].isOld {
      misses[index].isOld = true
      consequence = .kick
    }
    guard kept >= Self.keptLimit else { return consequence }
    kept = 0
    return .freeAndKick
  }
}
