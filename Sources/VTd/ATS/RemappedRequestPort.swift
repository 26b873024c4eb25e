import Hardware
import Synchronization

/// The port for all requests of one function: with and without PASID, translation requests, translated requests and
/// page requests. It also leads from the unit to the function's own cache.
///
/// Lock order: `state` is a leaf. The port calls no method of the unit while it holds `state`.
final class RemappedRequestPort: RequestPort {
  private struct State {
    var cache: (any TranslationCache)?
    /// The port of the PASID prefix that was used last. A function uses one PASID at a time.
    var withPASID: (prefix: PASIDPrefix, port: any DMAPort)?
  }

  private let unit: TranslationUnit
  let requester: Requester
  private let withoutPASID: any DMAPort
  let translated: ATSTranslatedPort
  private let state = Mutex(State())

  init(unit: TranslationUnit, requester: Requester) {
    self.unit = unit
    self.requester = requester
    withoutPASID = unit.makePort(for: requester)
    translated = ATSTranslatedPort(unit: unit, requester: requester, anchor: unit.makePort(for: requester))
  }

  var cache: (any TranslationCache)? { state.withLock { $0.cache } }

  func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort {
    guard var prefix else { return withoutPASID }
    prefix.executes = false
    if let port = state.withLock({ $0.withPASID?.prefix == prefix ? $0.withPASID?.port : nil }) { return port }
    let port = unit.makePort(for: requester, pasid: prefix.pasid, isPrivileged: prefix.isPrivileged)
    state.withLock { $0.withPASID = (prefix, port) }
    return port
  }

  var translatedPort: any DMAPort { translated }

  func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion {
    guard requester.busMasterEnable else { return .unsupportedRequest }
    // The walk counts as a request in flight: an invalidation waits for its end.
    let phase = translated.beginRequest()
    defer { translated.endRequest(phase) }
    return unit.answer(address, noWrite: noWrite, prefix: prefix, from: requester.id)
  }

  func requestPage(_ request: PageRequest) -> PageRequestOutcome {
    guard requester.busMasterEnable else { return .discarded }
    return unit.take(request, from: requester.id)
  }

  func completeInvalidations(_ tags: UInt32) { unit.complete(invalidations: tags, from: requester.id) }

  func connect(_ cache: (any TranslationCache)?) {
    state.withLock { state in
      state.cache = cache
      if cache == nil { state.withPASID = nil }
    }
    unit.setConnected(self, cache != nil)
  }

  func drain(parking: any Parking) {
    // A function uses one PASID at a time, so no other port with a PASID has requests in flight.
    let withPASID = state.withLock { $0.withPASID?.port }
    for port in [withoutPASID, translated, withPASID] { port?.inFlight.drain(parking: parking) }
  }
}

/// The port of translated requests. Their addresses are physical; the unit only checks that the function may use them
/// (VT-d 4.2).
final class ATSTranslatedPort: DMAPort {
  let memory: any PhysicalMemory
  private let unit: TranslationUnit
  private let requester: Requester
  /// A port that the unit knows, so that invalidations drain this port's requests. It translates nothing.
  private let anchor: any DMAPort

  init(unit: TranslationUnit, requester: Requester, anchor: any DMAPort) {
    self.unit = unit
    self.requester = requester
    self.anchor = anchor
    memory = unit.memory
  }

  var inFlight: RequestsInFlight { anchor.inFlight }

  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    guard requester.busMasterEnable else { throw .disabled }
    guard unit.accepts(translated: address, for: access, from: requester.id) else { throw .translation }
    // The segment ends with the page, so that the next page is checked separately.
    return PhysicalSegment(address: address, count: min(count, 0x1000 - Int(address & 0xfff)))
  }

  func noteUnclaimed() { requester.receiveMasterAbort() }
}

extension TranslationUnit {
  public func makeRequestPort(for requester: Requester) -> any RequestPort {
    RemappedRequestPort(unit: self, requester: requester)
  }

  private func lookup(_ mode: TranslationMode, _ source: RequesterID) -> RequestLookup {
    RequestLookup(mode, source: source, capabilities: capabilities, rules: rules, memory: memory)
  }

  private func record(
    _ reason: FaultReason, _ lookup: RequestLookup, from source: RequesterID, address: UInt64, isRead: Bool,
    prefix: PASIDPrefix?, type: RequestType
  ) {
    let isSuppressed = reason.isQualified && lookup.faultProcessingDisabled
    trace?.record(
      .faulted,
      [
        .source(source), .hex("fault", reason.rawValue), .hex("addr", address), .flag("write", !isRead),
        .flag("suppressed", isSuppressed),
      ] + (prefix.map { [.hex("pasid", $0.pasid)] } ?? []))
    if isSuppressed { return }
    registers.record(
      FaultRecord(
        reason: reason, source: source, information: address, isRead: isRead, pasid: prefix?.pasid,
        isPrivileged: prefix?.isPrivileged ?? false, executes: prefix?.executes ?? false, type: type))
  }

  /// Answers a translation request (VT-d 4.1.1).
  func answer(
    _ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?, from source: RequesterID
  ) -> TranslationCompletion {
    let mode = ports.withLock { $0.mode }
    devices.withLock { $0.counters.count(.translationRequests) }
    trace?.record(
      .translationRequested,
      [.source(source), .hex("addr", address), .flag("no_write", noWrite)]
        + (prefix.map { [.hex("pasid", $0.pasid)] } ?? []))
    // While translation is disabled this is not a fault.
    guard mode.enabled else { return .unsupportedRequest }
    var lookup = lookup(mode, source)
    let reason: FaultReason
    do {
      return .success(try lookup.translate(address, noWrite: noWrite, prefix: prefix))
    } catch {
      reason = error
    }
    let answer = reason.translationAnswer
    if answer != .noAccess {
      record(reason, lookup, from: source, address: address, isRead: true, prefix: prefix, type: .translationRequest)
    }
    return switch answer {
    case .noAccess, .noAccessAndFault: .success(.noAccess(isPrivileged: prefix?.isPrivileged ?? false))
    case .unsupportedRequest: .unsupportedRequest
    case .completerAbort: .completerAbort
    }
  }

  /// Returns whether a translated request may proceed. Records the fault where it may not.
  func accepts(translated address: UInt64, for access: DMAAccess, from source: RequesterID) -> Bool {
    let mode = ports.withLock { $0.mode }
    devices.withLock { $0.counters.count(.translatedRequests) }
    guard mode.enabled else { return false }
    var lookup = lookup(mode, source)
    do throws(FaultReason) {
      try lookup.checkTranslated(address)
      return true
    } catch {
      record(
        error, lookup, from: source, address: address, isRead: !access.contains(.write), prefix: nil,
        type: .translated)
      return false
    }
  }

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
    var lookup = lookup(mode, source)
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
