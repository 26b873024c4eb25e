import Hardware
import Synchronization

/// Keeps the host's IOMMU in step with the unit's tables, for the passed-through functions behind the unit.
///
/// As the unit's own caches do, a binding stays until the guest invalidates what it was read from. So the unit
/// must offer caching mode (CAP.CM): without it, software tells nobody when an entry becomes present, which is
/// well for a unit that reads the entry at the next request, but no request comes here.
///
/// What a delivery asks is done in two steps: first every binding that may have changed is reread, once; then each
/// first stage that is in use gets its invalidations, at once. A table that is no longer in use needs none, and one
/// that is newly made has nothing cached; so nothing is lost by the order.
///
/// Lock order: the unit's queue, then `state`, then the hosts' own. The host is called with `state` held, which
/// whoever invalidates, plugs or unplugs takes, a host that wants its function bound anew, and whoever looks on: these
/// wait for the host's calls.
public final class HostBindings: InvalidationObserver {
  private struct Function {
    let requester: Requester
    let host: any HostTranslation
    /// nil until something is bound.
    var held: HostBinding?
    /// DID of the entry that `held` comes from.
    var domain: UInt16?
    var table: (any HostFirstStage)?
  }

  /// Counts since the bindings were made, for whoever looks on.
  public struct Counters: Hashable, Sendable {
    /// Bindings that the host took.
    public var bindings: UInt64 = 0
    public var refusals: UInt64 = 0
    /// Calls of `HostFirstStage.invalidate`, and what they handed over.
    public var invalidationCalls: UInt64 = 0
    public var invalidations: UInt64 = 0
  }

  private struct State {
    var functions: [Function] = []
    var counters = Counters()
  }

  /// More invalidations of one table at once are handed over as one of all its mappings: the host works on each.
  public static let mostInvalidations = 512

  private let unit: TranslationUnit
  private let state = Mutex(State())

  public init(unit: TranslationUnit) { self.unit = unit }

  public var counters: Counters { state.withLock { $0.counters } }

  /// A function as it is bound now.
  public struct BoundFunction: Sendable {
    public let source: RequesterID
    public let host: any HostTranslation
    /// nil until something is bound.
    public let binding: HostBinding?
  }

  /// All of them, for whoever looks on.
  public var boundFunctions: [BoundFunction] {
    state.withLock { state in
      state.functions.map { BoundFunction(source: $0.requester.id, host: $0.host, binding: $0.held) }
    }
  }

  /// What a function is bound to now.
  public func binding(of host: any HostTranslation) -> HostBinding? {
    state.withLock { $0.functions.first { $0.host === host }?.held }
  }

  // MARK: Functions come and go

  /// Binds a function to what the tables say, and keeps it so.
  public func add(_ host: any HostTranslation, for requester: Requester) {
    let isFirst = state.withLock { state in
      state.functions.append(Function(requester: requester, host: host))
      return state.functions.count == 1
    }
    // From here on nothing is missed: whatever changes after the tables are read is told.
    if isFirst { unit.addObserver(self) }
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      reread(index, &state)
    }
  }

  /// Forgets a function, which stays bound as it is.
  public func remove(_ host: any HostTranslation) {
    let wasLast = state.withLock { state in
      let count = state.functions.count
      state.functions.removeAll { $0.host === host }
      return count > 0 && state.functions.isEmpty
    }
    if wasLast { unit.removeObserver(self) }
  }

  /// Has a function bound anew, though the tables say what they said: its host does it in another way from now on.
  public func renew(_ host: any HostTranslation) {
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      state.functions[index].held = nil
      reread(index, &state)
    }
  }

  // MARK: The guest's side

  public func invalidated(_ invalidations: [Invalidation]) {
    state.withLock { state in
      // A table that one function leaves, another may be about to enter.
      withExtendedLifetime(state.functions.map(\.table)) {
        for index in state.functions.indices
        where invalidations.contains(where: { Self.concerns($0, state.functions[index]) }) {
          reread(index, &state)
        }
      }
      forward(invalidations, &state)
    }
  }

  /// Whether the entries that a function's binding was read from may have changed.
  private static func concerns(_ invalidation: Invalidation, _ function: Function) -> Bool {
    switch invalidation {
    case .translationChanged, .allContexts, .contextsOfDomain, .allPASIDs: true
    case .contextsOfDevice(let device, let mask):
      (device.rawValue ^ function.requester.id.rawValue) & mask.significantBits == 0
    // An entry that was not present, or was wrong, had no domain that could be told.
    case .pasidsOfDomain(let domain), .pasid(_, let domain): function.domain == nil || function.domain == domain
    default: false
    }
  }

  private func reread(_ index: Int, _ state: inout State) {
    let function = state.functions[index]
    let source = function.requester.id
    let wanted = unit.hostBinding(for: source, pasid: nil)
    guard wanted.binding != function.held else {
      state.functions[index].domain = wanted.domain
      return
    }
    var refusal: FaultReason?
    do {
      state.functions[index].table = try function.host.bind(nil, to: wanted.binding)
      state.functions[index].held = wanted.binding
      state.functions[index].domain = wanted.domain
      state.counters.bindings &+= 1
      switch wanted.binding {
      case .blocked(.guestSecondStage), .blocked(.supervisorRequests): refusal = refusalReason
      case .secondStage, .firstStage, .blocked: break
      }
    } catch {
      state.counters.refusals &+= 1
      block(index, &state)
      refusal = refusalReason
    }
    // The guest learns it from the unit, as it would learn that its entry asks for what hardware has not.
    if let refusal {
      unit.recordHostFault(HostFault(reason: refusal, source: source, address: 0, isRead: true))
    }
  }

  /// LCT.4 or SPT.4, an entry that asks for what is not offered; nothing while translation is disabled.
  private var refusalReason: FaultReason? {
    let mode = unit.registers.state.withLock { $0.translationMode }
    return mode.enabled ? (mode.tableMode == .legacy ? .contextEntryInvalid : .pasidEntryInvalid) : nil
  }

  /// After a refusal: nothing that was bound before may go on. The next invalidation tries again.
  private func block(_ index: Int, _ state: inout State) {
    _ = try? state.functions[index].host.bind(nil, to: .blocked(.refused))
    state.functions[index].held = .blocked(.refused)
    state.functions[index].domain = nil
    state.functions[index].table = nil
  }

  // MARK: Invalidations of first stages

  private func forward(_ invalidations: [Invalidation], _ state: inout State) {
    var done: [ObjectIdentifier] = []
    for index in state.functions.indices {
      guard let table = state.functions[index].table, case .firstStage(let stage) = state.functions[index].held,
        !done.contains(ObjectIdentifier(table))
      else { continue }
      done.append(ObjectIdentifier(table))
      let users = state.functions.filter { $0.table === table }.map(\.requester.id)
      let own = Self.invalidations(of: stage, used: users, among: invalidations)
      guard !own.isEmpty else { continue }
      state.counters.invalidationCalls &+= 1
      state.counters.invalidations &+= UInt64(own.count)
      do {
        try table.invalidate(own)
      } catch {
        blockUsers(of: table, &state)
      }
    }
  }

  /// What the guest took back is reachable still: whoever could reach it is cut off, and the guest told.
  private func blockUsers(of table: any HostFirstStage, _ state: inout State) {
    for index in state.functions.indices where state.functions[index].table === table {
      let source = state.functions[index].requester.id
      state.counters.refusals &+= 1
      block(index, &state)
      unit.recordHostFault(HostFault(reason: .pasidEntryInvalid, source: source, address: 0, isRead: true))
    }
  }

  /// What is to be handed over for a table.
  ///
  /// The host flushes the device TLBs of its users with each. So what the guest invalidates in a device TLB needs no more
  /// where the same was invalidated in the unit just before, as software has to; anything else is handed over as if it
  /// were the unit's.
  private static func invalidations(
    of stage: GuestFirstStage, used users: [RequesterID], among invalidations: [Invalidation]
  ) -> [FirstStageInvalidation] {
    var own: [FirstStageInvalidation] = []
    for invalidation in invalidations {
      let next: FirstStageInvalidation
      switch invalidation {
      case .allTranslations,
        .translationsOfDomain(stage.domain), .pagesOfDomain(stage.domain, _, _),
        .translationsOfPASID(stage.pasid, domain: stage.domain):
        return [.all]
      case .pagesOfPASID(stage.pasid, domain: stage.domain, let pages, let leafOnly):
        next = FirstStageInvalidation(pages, leafOnly: leafOnly)
      case .deviceTLB(let source, let pages) where users.contains(source):
        next = FirstStageInvalidation(pages, leafOnly: true)
        if own.contains(where: { $0.covers(next) }) { continue }
      case .deviceTLBOfPASID(let source, let pasid, let pages)
      where users.contains(source) && (pasid == nil || pasid == stage.pasid):
        next = FirstStageInvalidation(pages, leafOnly: true)
        if own.contains(where: { $0.covers(next) }) { continue }
      default: continue
      }
      guard next != .all, own.count < mostInvalidations else { return [.all] }
      own.append(next)
    }
    return own
  }
}
