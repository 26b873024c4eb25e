/// The page request queue as its driver has it, one page of 128 entries, and the responses: VT-d 4.1, 7.4 to 7.7, and
/// 11.4.11 for the registers.

enum PageRequests {
  private static let head: UInt64 = 0xc0
  private static let tail: UInt64 = 0xc8
  private static let address: UInt64 = 0xd0
  private static let status: UInt64 = 0xdc
  static let eventControl: UInt64 = 0xe0

  private static let pending: UInt32 = 1 << 0
  private static let overflow: UInt32 = 1 << 1

  /// One less than the queue's entries: a full queue is not an empty one.
  static let room: UInt64 = 127
  nonisolated(unsafe) private static var queue: UInt64 = 0

  static func startQueue() {
    if queue == 0 { queue = Pages.take() }
    RemappingUnit.write64(head, 0)
    RemappingUnit.write64(tail, 0)
    RemappingUnit.write64(address, queue)
  }

  /// How many wait to be taken.
  static var count: UInt64 { (RemappingUnit.read64(tail) &- RemappingUnit.read64(head)) % Pages.size / 32 }
  static var hasOverflowed: Bool { RemappingUnit.read32(status) & overflow != 0 }

  /// The next one; nil where none comes.
  static func take() -> (low: UInt64, high: UInt64)? {
    guard wait(ticks: RemappingUnit.patience, until: { count != 0 }) else { return nil }
    let at = RemappingUnit.read64(head)
    // Before the head goes on: the place is the unit's again then.
    let found = (load64(queue + at), load64(queue + at + 8))
    RemappingUnit.write64(head, (at + 32) % Pages.size)
    RemappingUnit.write32(status, pending)
    return found
  }

  /// Leaves all that wait without a response, and clears the overflow.
  static func drop() {
    RemappingUnit.write64(head, RemappingUnit.read64(tail))
    RemappingUnit.write32(status, pending | overflow)
  }

  // MARK: Responses

  /// How a group of requests is answered.
  enum Code: UInt64 {
    case success = 0
    case invalid = 1
    case failure = 15
  }

  /// Puts the response to a group into the invalidation queue, and does not say so yet.
  /// - Parameter pasid: of the request; nil for one without.
  static func enqueueResponse(_ code: Code, group: UInt64, of source: UInt64, pasid: UInt64?) {
    let prefix = pasid.map { 1 << 4 | $0 << 32 } ?? 0
    RemappingUnit.enqueue(0x9 | prefix | code.rawValue << 12 | source << 16, group << 3)
  }

  /// - Returns: whether the unit came by the response.
  static func respond(_ code: Code, group: UInt64, of source: UInt64, pasid: UInt64?) -> Bool {
    enqueueResponse(code, group: group, of: source, pasid: pasid)
    return RemappingUnit.submitAndWait()
  }
}
