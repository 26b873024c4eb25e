import Hardware
import Synchronization

/// Keeps the host's IOMMU consistent with the unit's tables, for the passed-through functions behind the unit: for the
/// requests of each function without PASID, and for those with each PASID whose entry is present.
///
/// Like an entry in the unit's caches, a binding stays until the guest invalidates the entries that define it. The unit
/// must offer caching mode (CAP.CM): without it, software need not invalidate when it makes an entry present, so the
/// function would stay blocked. For an emulated function, the unit reads the new entry at the next request, but the
/// requests of passed-through functions never reach the unit. `PASIDDirectoryWalk.swift` says how the unit finds PASIDs
/// whose entries have become present.
///
/// The host uses the entry of PASID 0 of its own tables for requests without PASID, so requests with PASID 0 use the
/// same table, even if the guest has set RID_PASID to another number. PASID 0 has no binding of its own.
///
/// `invalidated` has two steps. First, it reads the tables again for each binding that may have changed. Then it passes
/// each first stage in use all its invalidations in one call. In this order no invalidation is lost: a table that is no
/// longer in use needs none, and the host has cached nothing of a new table. Both steps are complete before the guest's
/// wait descriptor is: a PASID whose entry software has cleared is off by then.
///
/// Lock order: the unit's queue, then `state`, then the hosts' own locks, and the function's for PASID Enable. `state`
/// is held during the calls of a host, so invalidations, hotplug, PASID Enable, resets, `renew` and inspection wait for
/// these calls. A guest has at most `PASIDLimit.bound` PASIDs for a function, which bounds the calls of an invalidation.
public final class HostBindings: InvalidationObserver {
  /// The binding of requests without PASID, or of those with one PASID.
  private struct Entry {
    /// Nil until the first binding.
    var binding: HostBinding?
    /// The number of the PASID-table entry that defines `binding`; nil if it is not known.
    var pasid: UInt32?
    /// DID of this entry; nil if it was not present or not valid.
    var domain: UInt16?
    /// The table that the host uses. If the host failed to detach it, it is still in use while `binding` is blocked.
    var table: BoundTable?
  }

  private struct Function {
    let requester: Requester
    let host: any HostTranslation
    /// Whether the function may send requests with PASID.
    var pasidEnable: Bool
    /// Requests without PASID.
    var requests = Entry()
    /// The PASIDs with a present entry.
    var pasids: [UInt32: Entry] = [:]

    /// Whether PASIDs can be bound.
    var takesPASIDs: Bool { pasidEnable && host.pasidWidth > 0 }

    /// The binding of a PASID, or of requests without PASID.
    subscript(_ pasid: UInt32?) -> Entry? {
      get { pasid.map { pasids[$0] } ?? requests }
      set { if let pasid { pasids[pasid] = newValue } else { requests = newValue ?? Entry() } }
    }
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
    var functions: [Function] = [] { didSet { index = nil } }
    var counters = Counters()
    /// The tables of all functions; nil after a change.
    var index: FirstStageIndex?
  }

  /// The most invalidations that one call passes. If a table has more, one invalidation of all mappings replaces them,
  /// because the host handles each one separately.
  public static let mostInvalidations = 512

  private let unit: RemappingUnit
  private let state = Mutex(State())

  public init(unit: RemappingUnit) { self.unit = unit }

  public var counters: Counters { state.withLock { $0.counters } }

  /// A function and its current bindings.
  public struct BoundFunction: Sendable {
    public let source: RequesterID
    public let host: any HostTranslation
    /// The current binding of requests without PASID; nil until the first binding.
    public let binding: HostBinding?
    /// The current bindings of the PASIDs whose entries are present, in order.
    public let pasids: [(pasid: UInt32, binding: HostBinding)]
  }

  /// All functions, for inspection.
  public var boundFunctions: [BoundFunction] {
    state.withLock { state in
      state.functions.map { function in
        BoundFunction(
          source: function.requester.id, host: function.host, binding: function.requests.binding,
          pasids: function.pasids.sorted { $0.key < $1.key }.compactMap { pasid, entry in
            entry.binding.map { (pasid, $0) }
          })
      }
    }
  }

  /// Returns the current binding of a function's requests with a PASID, or without; nil if there is none.
  public func binding(of host: any HostTranslation, pasid: UInt32? = nil) -> HostBinding? {
    state.withLock { $0.functions.first { $0.host === host }?[pasid]?.binding }
  }

  // MARK: Functions come and go

  /// Binds a function according to the tables, and keeps its bindings up to date.
  /// - Parameter pasidEnable: the function's PASID Enable.
  public func add(_ host: any HostTranslation, for requester: Requester, pasidEnable: Bool = true) {
    let isFirst = state.withLock { state in
      state.functions.append(Function(requester: requester, host: host, pasidEnable: pasidEnable))
      return state.functions.count == 1
    }
    // Observe before the first read of the tables, so that no change is missed.
    if isFirst { unit.addObserver(self, for: .translation) }
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      reread(index, nil, &state)
      findPASIDs(index, &state)
    }
  }

  /// Removes a function, but leaves its bindings on the host as they are.
  public func remove(_ host: any HostTranslation) {
    let wasLast = state.withLock { state in
      let count = state.functions.count
      state.functions.removeAll { $0.host === host }
      return count > 0 && state.functions.isEmpty
    }
    if wasLast { unit.removeObserver(self) }
  }

  /// Binds a function again although its entries have not changed, because the host now implements the bindings in
  /// another way.
  public func renew(_ host: any HostTranslation) {
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      let all: [UInt32?] = state.functions[index].pasids.keys.sorted() + [nil]
      for pasid in all {
        state.functions[index][pasid]?.binding = nil
        reread(index, pasid, &state)
      }
    }
  }

  /// Follows PASID Enable (PCI Express Base 7.8.9.3) of a function, which software writes and a reset clears. While it is
  /// clear, the function must not send requests with PASID, and none of its PASIDs is bound. The host's kernel leaves
  /// PASIDs enabled in the device, so a device that sends such requests nevertheless has them refused.
  /// - Parameter isEnabled: reads the bit. Called with the lock held, so that of several writes the last one counts.
  public func setPASIDEnable(of host: any HostTranslation, _ isEnabled: () -> Bool) {
    state.withLock { state in
      guard let index = state.functions.firstIndex(where: { $0.host === host }) else { return }
      let isEnabled = isEnabled()
      guard state.functions[index].pasidEnable != isEnabled else { return }
      state.functions[index].pasidEnable = isEnabled
      for pasid in state.functions[index].pasids.keys.sorted() { reread(index, pasid, &state) }
      findPASIDs(index, &state)
    }
  }

  // MARK: The guest's side

  public func invalidated(_ invalidations: [Invalidation]) {
    state.withLock { state in
      let scope = RereadScope(invalidations)
      if !scope.isEmpty {
        // Keep the tables alive: another function or PASID may bind to the table that one leaves.
        withExtendedLifetime(index(&state)) {
          for index in state.functions.indices { reread(index, scope, &state) }
        }
      }
      forward(invalidations, &state)
    }
  }

  /// Reads again what a batch covers of one function.
  private func reread(_ index: Int, _ scope: RereadScope, _ state: inout State) {
    let part = scope.part(of: state.functions[index].requester.id)
    let known = state.functions[index].pasids
    let candidates = part.coversUnnamed ? Array(known.keys) : scope.named.keys.filter { known[$0] != nil }
    // PASIDs that are gone make room for new ones.
    for pasid in candidates.sorted() where part.covers(pasid: pasid, domain: known[pasid]?.domain) {
      reread(index, pasid, &state)
    }
    let requests = state.functions[index].requests
    if part.covers(pasid: requests.pasid, domain: requests.domain) { reread(index, nil, &state) }
    guard state.functions[index].takesPASIDs else { return }
    let width = UInt32(state.functions[index].host.pasidWidth)
    if part.coversUnnamed { findPASIDs(index, &state) }
    for pasid in scope.named.keys.sorted()
    where pasid != 0 && pasid >> width == 0 && state.functions[index].pasids[pasid] == nil {
      reread(index, pasid, &state)
    }
  }

  /// Binds PASIDs whose entries have become present, as far as a walk finds them.
  private func findPASIDs(_ index: Int, _ state: inout State) {
    let function = state.functions[index]
    guard function.takesPASIDs else { return }
    var lookup = unit.lookup(function.requester.id, in: unit.registers.state.withLock { $0.translationMode })
    // One more than there is room for, so that the guest learns of the limit.
    let found = lookup.presentPASIDs(
      width: function.host.pasidWidth, count: PASIDLimit.bound - function.pasids.count + 1
    ) { function.pasids[$0] != nil }
    for pasid in found { reread(index, pasid, &state) }
  }

  /// Reads the entries of a PASID, or of requests without PASID, and changes the binding if they define another one.
  private func reread(_ index: Int, _ pasid: UInt32?, _ state: inout State) {
    let (host, source) = (state.functions[index].host, state.functions[index].requester.id)
    let former = state.functions[index][pasid]
    let wanted = unit.hostBinding(for: source, pasid: pasid)
    if let pasid {
      let isEnabled = state.functions[index].pasidEnable
      guard wanted.isPresent, isEnabled else {
        if former != nil {
          detach(pasid, to: isEnabled ? wanted.binding : .blocked(.entry(.pasidNotEnabled)), index, &state)
        }
        return
      }
      guard former != nil || state.functions[index].pasids.count < PASIDLimit.bound else {
        _ = try? host.bind(pasid, to: .blocked(.tooManyPASIDs))
        refuse(pasid, index, &state)
        return
      }
    }
    guard wanted.binding != former?.binding else {
      if (former?.domain, former?.pasid) != (wanted.domain, wanted.pasid) {
        state.functions[index][pasid]?.domain = wanted.domain
        state.functions[index][pasid]?.pasid = wanted.pasid
      }
      return
    }
    do {
      let table = try host.bind(pasid, to: wanted.binding)
      var entry = Entry(binding: wanted.binding, pasid: wanted.pasid, domain: wanted.domain)
      if let table, case .firstStage(let stage) = wanted.binding { entry.table = BoundTable(stage: stage, host: table) }
      state.functions[index][pasid] = entry
      state.counters.bindings &+= 1
      switch wanted.binding {
      case .blocked(.guestSecondStage), .blocked(.supervisorRequests): record(refusalReason, pasid, source)
      case .secondStage, .firstStage, .blocked: break
      }
    } catch {
      block(pasid, index, number: wanted.pasid, &state)
      refuse(pasid, index, &state)
    }
  }

  /// Takes a PASID off whose entry is no longer present. If the host fails, the PASID stays known, so that its
  /// invalidations reach the table that it may still use, and the next invalidation of its entry tries again.
  private func detach(_ pasid: UInt32, to binding: HostBinding, _ index: Int, _ state: inout State) {
    do {
      _ = try state.functions[index].host.bind(pasid, to: binding)
      state.functions[index].pasids[pasid] = nil
    } catch {
      state.functions[index].pasids[pasid]?.binding = .blocked(.refused)
      state.functions[index].pasids[pasid]?.domain = nil
      refuse(pasid, index, &state)
    }
  }

  /// Counts a refusal and reports it to the guest, like an entry that requests a feature the hardware does not have.
  private func refuse(_ pasid: UInt32?, _ index: Int, _ state: inout State) {
    state.counters.refusals &+= 1
    record(refusalReason, pasid, state.functions[index].requester.id)
  }

  private func record(_ reason: FaultReason?, _ pasid: UInt32?, _ source: RequesterID) {
    guard let reason else { return }
    unit.recordHostFault(HostFault(reason: reason, source: source, pasid: pasid, address: 0, isRead: true))
  }

  /// The fault of a refused binding: LCT.4 or SPT.4, as for an entry that requests a feature that the unit does not
  /// offer. Nil while translation is disabled.
  private var refusalReason: FaultReason? {
    let mode = unit.registers.state.withLock { $0.translationMode }
    return mode.enabled ? (mode.tableMode == .legacy ? .contextEntryInvalid : .pasidEntryInvalid) : nil
  }

  /// Blocks requests after a refusal, so that their previous binding ends. The next invalidation of their entries tries
  /// again.
  /// - Parameter number: the number of the PASID-table entry that defines the binding; nil if it is not known.
  private func block(_ pasid: UInt32?, _ index: Int, number: UInt32?, _ state: inout State) {
    let former = state.functions[index][pasid]
    var entry = Entry(binding: .blocked(.refused), pasid: number)
    do {
      _ = try state.functions[index].host.bind(pasid, to: .blocked(.refused))
    } catch {
      entry.table = former?.table
    }
    state.functions[index][pasid] = entry
  }

  // MARK: Invalidations of first stages

  /// The tables in use.
  private func index(_ state: inout State) -> FirstStageIndex {
    if let index = state.index { return index }
    var index = FirstStageIndex()
    for function in state.functions {
      index.appendFunction()
      if let table = function.requests.table { index.append(table, pasid: nil) }
      for (pasid, entry) in function.pasids.sorted(by: { $0.key < $1.key }) {
        if let table = entry.table { index.append(table, pasid: pasid) }
      }
    }
    state.index = index
    return index
  }

  private func forward(_ invalidations: [Invalidation], _ state: inout State) {
    let lists = index(&state).distribute(invalidations, sources: state.functions.map(\.requester.id))
    for (table, invalidations) in lists {
      state.counters.invalidationCalls &+= 1
      state.counters.invalidations &+= UInt64(invalidations.count)
      do {
        try table.host.invalidate(invalidations)
      } catch {
        blockUsers(of: table.host, &state)
      }
    }
  }

  /// Blocks all requests that use the table, and records a fault for each function and PASID. Called after a failed
  /// invalidation, because the host may still use old mappings.
  private func blockUsers(of table: any HostFirstStage, _ state: inout State) {
    for index in state.functions.indices {
      var users: [UInt32?] = state.functions[index].pasids.filter { $0.value.table?.host === table }.keys.sorted()
      if state.functions[index].requests.table?.host === table { users.insert(nil, at: 0) }
      for pasid in users {
        block(pasid, index, number: state.functions[index][pasid]?.pasid, &state)
        state.counters.refusals &+= 1
        record(.pasidEntryInvalid, pasid, state.functions[index].requester.id)
      }
    }
  }
}
