import Hardware
import Synchronization

/// The port for all requests of one function: with and without PASID, translation requests, translated requests and
/// page requests. The port also passes the unit's messages to the function's own cache.
///
/// Lock order: code that holds `state` takes no other lock. The port calls no method of the unit while it holds
/// `state`.
final class RemappedRequestPort: RequestPort {
  private struct State {
    var cache: (any TranslationCache)?
    /// The ports of the PASID prefixes that the function used last. A function makes its requests with PASID one after
    /// another, so a port that is replaced has no requests in flight.
    var withPASID: [(prefix: PASIDPrefix, port: any DMAPort)] = []
    var victim = 0

    mutating func add(_ prefix: PASIDPrefix, _ port: any DMAPort) {
      if withPASID.count < RemappedRequestPort.portCapacity {
        withPASID.append((prefix, port))
      } else {
        withPASID[victim] = (prefix, port)
        victim = (victim + 1) % RemappedRequestPort.portCapacity
      }
    }
  }

  /// The number of PASID prefixes whose ports are kept: those of dma-engine's 16 slots and of its commands.
  private static let portCapacity = 17

  private let unit: RemappingUnit
  let requester: Requester
  private let withoutPASID: any DMAPort
  let translated: ATSTranslatedPort
  private let state = Mutex(State())

  init(unit: RemappingUnit, requester: Requester) {
    self.unit = unit
    self.requester = requester
    withoutPASID = unit.makePort(for: requester)
    translated = ATSTranslatedPort(unit: unit, requester: requester, anchor: unit.makePort(for: requester))
  }

  var cache: (any TranslationCache)? { state.withLock { $0.cache } }

  func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort {
    guard var prefix else { return withoutPASID }
    prefix.executes = false
    if let port = state.withLock({ state in state.withPASID.first { $0.prefix == prefix }?.port }) { return port }
    let port = unit.makePort(for: requester, pasid: prefix.pasid, isPrivileged: prefix.isPrivileged)
    state.withLock { $0.add(prefix, port) }
    return port
  }

  var translatedPort: any DMAPort { translated }

  func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion {
    guard requester.busMasterEnable else { return .unsupportedRequest }
    // An invalidation waits for the end of the walk, as for other requests in flight.
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
      if cache == nil { state.withPASID = [] }
    }
    unit.setConnected(self, cache != nil)
  }

  func drain(parking: any Parking) {
    let withPASID = state.withLock { $0.withPASID.map(\.port) }
    for port in [withoutPASID, translated] + withPASID { port.inFlight.drain(parking: parking) }
  }
}

extension RemappingUnit {
  public func makeRequestPort(for requester: Requester) -> any RequestPort {
    RemappedRequestPort(unit: self, requester: requester)
  }
}
