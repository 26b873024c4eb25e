import Hardware

// The page request queue (VT-d 7.4, 11.4.11): the page requests of functions in memory, and the event that reports them
// to software.

extension RegisterDescription {
  /// The registers of a unit that reports ECAP.PRS.
  static func pageRequestQueue(_ tableAddress: UInt64, _ upperMessageAddress: UInt64) -> [RegisterDescription] {
    [
      RegisterDescription("PQH", at: RegisterOffset.pageRequestQueueHead, width: 8, writable: 0x7_ffe0),
      RegisterDescription("PQT", at: RegisterOffset.pageRequestQueueTail, width: 8, writable: 0x7_ffe0),
      RegisterDescription("PQA", at: RegisterOffset.pageRequestQueueAddress, width: 8, writable: tableAddress | 0x7),
      RegisterDescription("PRS", at: RegisterOffset.pageRequestStatus, width: 4, writeOneToClear: 0x3),
      RegisterDescription(
        "PECTL", at: RegisterOffset.pageRequestEventControl, width: 4, reset: 0x8000_0000, writable: 0x8000_0000),
      RegisterDescription("PEDATA", at: RegisterOffset.pageRequestEventData, width: 4, writable: 0xffff),
      RegisterDescription("PEADDR", at: RegisterOffset.pageRequestEventAddress, width: 4, writable: 0xffff_fffc),
      RegisterDescription(
        "PEUADDR", at: RegisterOffset.pageRequestEventUpperAddress, width: 4, writable: upperMessageAddress),
    ]
  }
}

/// Page Request Status (VT-d 11.4.11.4).
struct PageRequestQueueStatus: OptionSet, Sendable {
  let rawValue: UInt32

  static let pendingPageRequest = PageRequestQueueStatus(rawValue: 1 << 0)  // PPR
  static let pageRequestOverflow = PageRequestQueueStatus(rawValue: 1 << 1)  // PRO
}

/// A page request descriptor: 256 bits, whose second half is reserved (VT-d 7.4.1).
struct PageRequestDescriptor: Hashable, Sendable {
  var low: UInt64
  var high: UInt64

  init(_ request: PageRequest, from source: RequesterID) {
    low = 1  // type
    low[bits: 16...31] = UInt64(source.rawValue)
    if let prefix = request.prefix {
      low[bit: 8] = true  // PASID present
      low[bits: 32...51] = UInt64(prefix.pasid)
      low[bit: 52] = prefix.executes
      low[bit: 53] = prefix.isPrivileged
    }
    high = request.address & ~0xfff
    high[bit: 0] = request.reads
    high[bit: 1] = request.writes
    high[bit: 2] = request.isLastInGroup
    high[bits: 3...11] = UInt64(request.groupIndex)
  }
}

extension UnitRegisters {
  static let pageRequestDescriptorSize: UInt64 = 32

  private var pageRequestStatus: PageRequestQueueStatus {
    get { PageRequestQueueStatus(rawValue: file[doubleword: RegisterOffset.pageRequestStatus]) }
    set { file[doubleword: RegisterOffset.pageRequestStatus] = newValue.rawValue }
  }

  enum Enqueuing: Sendable {
    case queued
    /// The queue is full, or software has not handled the last overflow.
    case overflowed
    /// The queue's address is not in RAM.
    case failed
  }

  /// Stores a page request at the tail, then moves the tail (7.4).
  mutating func enqueue(
    _ descriptor: PageRequestDescriptor, in memory: any PhysicalMemory, _ effects: inout Effects
  ) -> Enqueuing {
    guard !pageRequestStatus.contains(.pageRequestOverflow) else { return .overflowed }
    let queue = file[quadword: RegisterOffset.pageRequestQueueAddress]
    let mask = (0x1000 << queue[bits: 0...2]) &- Self.pageRequestDescriptorSize
    let tail = file[quadword: RegisterOffset.pageRequestQueueTail] & mask
    let next = (tail &+ Self.pageRequestDescriptorSize) & mask
    guard next != file[quadword: RegisterOffset.pageRequestQueueHead] & mask else {
      raise(.pageRequestOverflow, &effects)
      return .overflowed
    }
    let place = queue & ~0xfff &+ tail
    guard memory.storeUInt64(descriptor.low, at: place), memory.storeUInt64(descriptor.high, at: place &+ 8),
      memory.storeUInt64(0, at: place &+ 16), memory.storeUInt64(0, at: place &+ 24)
    else { return .failed }
    file[quadword: RegisterOffset.pageRequestQueueTail] = next
    raise(.pendingPageRequest, &effects)
    return .queued
  }

  /// Sets a condition. Only the first one raises the event (7.5); software finds the others when it handles that event.
  private mutating func raise(_ condition: PageRequestQueueStatus, _ effects: inout Effects) {
    let before = pageRequestStatus
    pageRequestStatus = before.union(condition)
    if before.isEmpty, let message = signal(.pageRequest) { effects.pageRequestEvent = message }
  }

  /// Drops a pending event once all its conditions are clear.
  mutating func clearServicedPageRequestEvent() {
    if pageRequestStatus.isEmpty { file[doubleword: EventRegisters.pageRequest.control][bit: 30] = false }
  }
}
