import Hardware

// Page requests of functions (VT-d 7.4, 11.4.11). The unit checks each request, then answers it or stores it in the
// page request queue in memory. An event informs software of new requests in the queue.

extension RegisterDescription {
  /// The registers of a unit that reports ECAP.PRS.
  static func pageRequestQueue(_ tableAddress: UInt64, _ upperMessageAddress: UInt64) -> [RegisterDescription] {
    [
      RegisterDescription("PQH", at: RegisterOffset.pageRequestQueueHead, width: 8, writable: 0x7_ffe0),
      RegisterDescription("PQT", at: RegisterOffset.pageRequestQueueTail, width: 8, writable: 0x7_ffe0),
      RegisterDescription("PQA", at: RegisterOffset.pageRequestQueueAddress, width: 8, writable: tableAddress | 0x7),
      RegisterDescription("PRS", at: RegisterOffset.pageRequestStatus, width: 4, writeOneToClear: 0x3),
    ] + event("PE", .pageRequest, upperMessageAddress)
  }
}

/// Page Request Status (VT-d 11.4.11.4).
struct PageRequestQueueStatus: OptionSet, Sendable {
  let rawValue: UInt32

  static let pendingPageRequest = PageRequestQueueStatus(rawValue: 1 << 0)  // PPR
  static let pageRequestOverflow = PageRequestQueueStatus(rawValue: 1 << 1)  // PRO
}

/// A page request descriptor of 256 bits. Its second half is reserved (VT-d 7.4.1).
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

  /// Sets a condition. Only the first condition raises the event (7.5); when software handles it, it finds the later
  /// ones.
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

extension SourceLookup {
  /// Checks that a page request may enter the queue (7.4, SCT.8).
  /// - Returns: the domain and the PASID of the request's cached translations. Nil if the PASID has no valid entry.
  mutating func checkPageRequest(_ prefix: PASIDPrefix?) throws(FaultReason) -> (domain: UInt16, pasid: UInt32)? {
    guard case .scalable(let context) = try context(for: .pageRequest, pasid: prefix?.pasid) else {
      throw .pageRequestInLegacyMode
    }
    let pasid = prefix?.pasid ?? context.ridPASID(capabilities)
    if prefix != nil, pasid >> UInt32(capabilities.pasidWidth) != 0 { throw .pasidBeyondDirectory }
    // An invalid PASID-table entry is no error here: software, not the unit, checks the entry.
    let entry = try? pasidEntry(pasid, isFromRequest: prefix != nil, context: context)
    return entry.map { ($0.domain, pasid) }
  }
}

extension RemappingUnit {
  /// Queues a page request (VT-d 7.4), or answers it if it is the last of its group. The answer is Success after an
  /// overflow, so that the function repeats its translation request and page request. It is Invalid Request if the unit
  /// or its tables do not permit page requests, and Response Failure for other errors.
  func take(_ request: PageRequest, from source: RequesterID) -> PageRequestOutcome {
    func answer(_ code: PageGroupResponse.Code) -> PageRequestOutcome {
      request.isLastInGroup && !request.isStopMarker ? .answered(code) : .discarded
    }
    devices.withLock { $0.counters.count(.pageRequests) }
    trace?.record(
      .pageRequested,
      [
        .source(source), .hex("addr", request.address), .number("group", request.groupIndex),
        .flag("read", request.reads), .flag("write", request.writes), .flag("last", request.isLastInGroup),
      ] + (request.prefix.map { [.hex("pasid", $0.pasid)] } ?? []))
    let phase = pageRequestsInFlight.begin()
    defer { pageRequestsInFlight.end(phase) }
    let mode = ports.withLock { $0.mode }
    guard capabilities.pageRequests, mode.enabled else { return answer(.invalidRequest) }
    var lookup = lookup(source, in: mode)
    do {
      if let (domain, pasid) = try lookup.checkPageRequest(request.prefix) {
        // Discard cached translations of the page: they did not suffice for the function (7.4).
        let page = Invalidation.pagesOfPASID(
          pasid, domain: domain, PageRange(address: request.address, addressMask: 0), leafOnly: true)
        ports.withLock { ports in
          for port in ports.all { _ = port.invalidate(page) }
        }
      }
    } catch {
      record(
        error, lookup, from: source, address: request.address, isRead: !request.writes, prefix: request.prefix,
        type: .pageRequest)
      return answer(error.translationAnswer == .completerAbort ? .responseFailure : .invalidRequest)
    }
    var effects = UnitRegisters.Effects()
    let outcome = registers.state.withLock {
      $0.enqueue(PageRequestDescriptor(request, from: source), in: memory, &effects)
    }
    registers.send(effects)
    return switch outcome {
    case .queued: .queued
    case .overflowed: answer(.success)
    case .failed: answer(.responseFailure)
    }
  }
}
