/// The page request queue from its driver's side, one page of 128 entries, and the responses: VT-d 4.1, 7.4 to 7.7, and
/// 11.4.11 for the registers.

enum PageRequests {
  private static let head: UInt64 = 0xc0
  private static let tail: UInt64 = 0xc8
  private static let address: UInt64 = 0xd0
  private static let status: UInt64 = 0xdc
  static let eventControl: UInt64 = 0xe0

  private static let pending: UInt32 = 1 << 0
  private static let overflow: UInt32 = 1 << 1

  /// One less than the queue's entries, because a full queue must differ from an empty one.
  static let room: UInt64 = 127
  nonisolated(unsafe) private static var queue: UInt64 = 0

  static func startQueue() {
    if queue == 0 { queue = Pages.take() }
    RemappingUnit.write64(head, 0)
    RemappingUnit.write64(tail, 0)
    RemappingUnit.write64(address, queue)
  }

  /// The number of requests in the queue.
  static var count: UInt64 { (RemappingUnit.read64(tail) &- RemappingUnit.read64(head)) % Pages.size / 32 }
  static var hasOverflowed: Bool { RemappingUnit.read32(status) & overflow != 0 }

  /// Takes the next request; nil if none arrives in time.
  static func take() -> (low: UInt64, high: UInt64)? {
    guard wait(ticks: RemappingUnit.patience, until: { count != 0 }) else { return nil }
    let at = RemappingUnit.read64(head)
    // Read before the head moves, because then the unit may use the place again.
    let found = (load64(queue + at), load64(queue + at + 8))
    RemappingUnit.write64(head, (at + 32) % Pages.size)
    RemappingUnit.write32(status, pending)
    return found
  }

  /// Drops all requests in the queue without a response, and clears the overflow.
  static func drop() {
    RemappingUnit.write64(head, RemappingUnit.read64(tail))
    RemappingUnit.write32(status, pending | overflow)
  }

  // MARK: Responses

  /// The code of a response to a group of requests.
  enum Code: UInt64 {
    case success = 0
    case invalid = 1
    case failure = 15
  }

  /// Queues the response to a group, and does not write the tail.
  /// - Parameter pasid: the PASID of the request; nil for a request without one.
  static func enqueueResponse(_ code: Code, group: UInt64, of source: UInt64, pasid: UInt64?) {
    let prefix = pasid.map { 1 << 4 | $0 << 32 } ?? 0
    RemappingUnit.enqueue(0x9 | prefix | code.rawValue << 12 | source << 16, group << 3)
  }

  /// Queues a response and writes the tail.
  /// - Returns: whether the unit has processed the response.
  static func respond(_ code: Code, group: UInt64, of source: UInt64, pasid: UInt64?) -> Bool {
    enqueueResponse(code, group: group, of: source, pasid: pasid)
    return RemappingUnit.submitAndWait()
  }
}
