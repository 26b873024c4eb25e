import Hardware
import Synchronization

/// Keeps the host's IOMMU consistent with the unit's tables, for the passed-through functions behind the unit.
///
/// Like an entry in the unit's caches, a binding stays until the guest invalidates the entries that define it. The unit
/// must offer caching mode (CAP.CM): without it, software need not invalidate when it makes an entry present, so the
/// function would stay blocked. For an emulated function, the unit reads the new entry at the next request, but the
/// requests of passed-through functions never reach the unit.
///
/// `invalidated` has two steps. First, it reads the tables again for each binding that may have changed. Then it passes
/// each first stage in use all its invalidations in one call. In this order no invalidation is lost: a table that is no
/// longer in use needs none, and the host has cached nothing of a new table.
///
/// Lock order: the unit's queue, then `state`, then the hosts' own locks. `state` is held during the calls of a host,
/// so invalidations, hotplug, `renew` and inspection wait for these calls.
public final class HostBindings: InvalidationObserver {
  private struct Function {
    let requester: Requester
    let host: any HostTranslation
    /// The current binding; nil until the first binding.
    var binding: HostBinding?
    /// DID of the entry that defines `binding`.
    var domain: UInt16?
    var table: (any HostFirstStage)?
  }

  /// Counts since the creation of the bindings, for inspection.
  public struct Counters: Hashable, Sendable {
    /// Bindings that the host accepted.
    public var bindings: UInt64 = 0
    public var refusals: UInt64 = 0
    /// Calls of `HostFirstStage.invalidate`. `invalidations` counts the invalidations that they passed.
    public var invalidationCalls: UInt64 = 0
    public var invalidations: UInt64 = 0
  }

  private struct State {
    var functions: [Function] = []
    var counters = Counters()
  }

  /// The most invalidations that one call passes. If a table has more, one invalidation of all mappings replaces them,
  /// because the host handles each one separately.
  public static let mostInvalidations = 512

  private let unit: RemappingUnit
  private let state = Mutex(State())

  public init(unit: RemappingUnit) { self.unit = unit }

  public var counters: Counters { state.withLock { $0.counters } }

  /// A function and its current binding.
  public struct BoundFunction: Sendable {
    public let source: RequesterID
    public let host: any HostTranslation
    /// The current binding; nil until the first binding.
    public let binding: HostBinding?
  }

  /// All functions, for inspection.
  public var boundFunctions: [BoundFunction] {
    state.withLock { state in
      state.functions.map { BoundFunction(source: $0.requester.id, host: $0.host, binding: $0.binding) }
    }
  }

  /// Returns the current binding of a function.
  public func binding(of host: any HostTranslation) -> HostBinding? {
    state.withLock { $0.functions.first { $0.host === host }?.binding }
  }

  // MARK: Functions come and go

  /// Binds a function according to the tables, and keeps the binding up to date.
  public func add(_ host: any HostTranslation, for requester: Requester) {
    let isFirst = state.withLock { state in
      state.functions.append(Function(requester: requester, host: host))
      return state.functions.count == 1
    }
    // Observe before the first read of the tables, so that no change is missed.
    if isFirst { unit.addObserver(self, for: .translation) }
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      reread(index, &state)
    }
  }

  /// Removes a function, but leaves its binding on the host as it is.
  public func remove(_ host: any HostTranslation) {
    let wasLast = state.withLock { state in
      let count = state.functions.count
      state.functions.removeAll { $0.host === host }
      return count > 0 && state.functions.isEmpty
    }
    if wasLast { unit.removeObserver(self) }
  }

  /// Binds a function again although its entries have not changed, because the host now implements the binding in
  /// another way.
  public func renew(_ host: any HostTranslation) {
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      state.functions[index].binding = nil
      reread(index, &state)
    }
  }

  // MARK: The guest's side

  public func invalidated(_ invalidations: [Invalidation]) {
    state.withLock { state in
      // Keep the tables alive: another function may bind to the table that one function leaves.
      withExtendedLifetime(state.functions.map(\.table)) {
        for index in state.functions.indices
        where invalidations.contains(where: { Self.concerns($0, state.functions[index]) }) {
          reread(index, &state)
        }
      }
      forward(invalidations, &state)
    }
  }

  /// Whether the entries that define a function's binding may have changed.
  private static func concerns(_ invalidation: Invalidation, _ function: Function) -> Bool {
    switch invalidation {
    case .translationChanged, .allContexts, .contextsOfDomain, .allPASIDs: true
    case .contextsOfDevice(let device, let mask): mask.matches(device, function.requester.id)
    // A function whose entry was not present or invalid has no domain, so the invalidation may concern it.
    case .pasidsOfDomain(let domain), .pasid(_, let domain): function.domain == nil || function.domain == domain
    default: false
    }
  }

  private func reread(_ index: Int, _ state: inout State) {
    let function = state.functions[index]
    let source = function.requester.id
    let wanted = unit.hostBinding(for: source, pasid: nil)
    guard wanted.binding != function.binding else {
      state.functions[index].domain = wanted.domain
      return
    }
    var refusal: FaultReason?
    do {
      state.functions[index].table = try function.host.bind(nil, to: wanted.binding)
      state.functions[index].binding = wanted.binding
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
    // Report a refusal to the guest like an entry that requests a feature the hardware does not have.
    if let refusal {
      unit.recordHostFault(HostFault(reason: refusal, source: source, address: 0, isRead: true))
    }
  }

  /// The fault of a refused binding: LCT.4 or SPT.4, as for an entry that requests a feature that the unit does not
  /// offer. Nil while translation is disabled.
  private var refusalReason: FaultReason? {
    let mode = unit.registers.state.withLock { $0.translationMode }
    return mode.enabled ? (mode.tableMode == .legacy ? .contextEntryInvalid : .pasidEntryInvalid) : nil
  }

  /// Blocks a function after a refusal, so that its previous binding ends. The next invalidation of its entries tries
  /// again.
  private func block(_ index: Int, _ state: inout State) {
    _ = try? state.functions[index].host.bind(nil, to: .blocked(.refused))
    state.functions[index].binding = .blocked(.refused)
    state.functions[index].domain = nil
    state.functions[index].table = nil
  }

  // MARK: Invalidations of first stages

  private func forward(_ invalidations: [Invalidation], _ state: inout State) {
    var done: [ObjectIdentifier] = []
    for index in state.functions.indices {
      guard let table = state.functions[index].table, case .firstStage(let stage) = state.functions[index].binding,
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

  /// Blocks every function that uses the table and records a fault for each. Called after a failed invalidation,
  /// because the host may still use old mappings.
  private func blockUsers(of table: any HostFirstStage, _ state: inout State) {
    for index in state.functions.indices where state.functions[index].table === table {
      let source = state.functions[index].requester.id
      state.counters.refusals &+= 1
      block(index, &state)
      unit.recordHostFault(HostFault(reason: .pasidEntryInvalid, source: source, address: 0, isRead: true))
    }
  }

  /// Returns the invalidations to pass to the host for a table.
  ///
  /// With each invalidation, the host also flushes the device TLBs of the table's users. Software must invalidate the
  /// IOTLB before a device TLB, so a device-TLB invalidation is redundant if an earlier invalidation covers it. Other
  /// device-TLB invalidations are passed like IOTLB invalidations.
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
