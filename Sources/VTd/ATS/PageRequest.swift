import Hardware

// Page requests (VT-d 7.4): the unit checks each one, and queues or answers it.

extension SourceLookup {
  /// Checks that a page request may enter the queue (7.4, SCT.8).
  /// - Returns: domain and PASID of the cached translations, or nil where the PASID has no valid entry.
  mutating func checkPageRequest(_ prefix: PASIDPrefix?) throws(FaultReason) -> (domain: UInt16, pasid: UInt32)? {
    guard case .scalable(let context) = try context(for: .pageRequest, pasid: prefix?.pasid) else {
      throw .pageRequestInLegacyMode
    }
    let pasid = prefix?.pasid ?? context.ridPASID(capabilities)
    if prefix != nil, pasid >> UInt32(capabilities.pasidWidth) != 0 { throw .pasidBeyondDirectory }
    // Software checks the PASID-table entry, not the unit.
    let entry = try? pasidEntry(pasid, isFromRequest: prefix != nil, context: context)
    return entry.map { ($0.domain, pasid) }
  }
}

extension RemappingUnit {
  /// Queues a page request (VT-d 7.4), or answers it: with success after an overflow, so that the function repeats its
  /// translation request and page request; with Invalid Request where the tables forbid page requests; else with
  /// Response Failure.
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
        // Discard cached translations of the page: the function found them insufficient (7.4).
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
