import Hardware
import Synchronization

/// The port of one remote datapath behind the unit. It answers the remote's misses from the tables in memory, and sends
/// it the guest's invalidations.
///
/// A miss is a request in flight until its mapping is installed. An invalidation takes `state` first, so each miss has
/// either recorded its tag already or reads the changed tables. Then it waits for the misses in flight, and then it
/// goes to the remote.
///
/// Lock order: code that holds `state` reads and updates guest memory, and takes no other lock. The port calls neither
/// the unit nor the remote while it holds `state`. The unit calls the remote while it holds `queue`.
final class RemappedRemotePort: RemoteDMAPort {
  struct State {
    var mode = TranslationMode()
    var contents = RemoteContents()
    /// Ranges that the remote loses and has not received yet.
    var queued = QueuedRanges()
    var isConnected = true
    var counters = TranslationCounters()
  }

  let inFlight = RequestsInFlight()
  let requester: Requester
  private let unit: RemappingUnit
  private let remote: any RemoteIOTLB
  private let walk: RemoteWalk
  private let state = Mutex(State())

  init(_ remote: any RemoteIOTLB, unit: RemappingUnit, requester: Requester) {
    self.remote = remote
    self.unit = unit
    self.requester = requester
    walk = RemoteWalk(
      rules: unit.rules, memory: unit.memory, frozen: FrozenMemory(unit.memory),
      asksAgainToWrite: remote.asksAgainToWrite)
  }

  // MARK: The remote's side

  var isConnected: Bool { state.withLock { $0.isConnected } }

  func translate(
    _ address: UInt64, for access: DMAAccess, recordsFault: Bool, _ install: (RemoteMapping) -> Void
  ) throws(DMAError) {
    let phase = inFlight.begin()
    defer { inFlight.end(phase) }
    guard requester.busMasterEnable, isConnected else { throw .disabled }
    let source = requester.id
    unit.trace?.record(
      .remoteMissed, [.source(source), .hex("addr", address), .flag("write", access.contains(.write))])
    var lookup = SourceLookup(
      TranslationMode(), source: source, capabilities: unit.capabilities, memory: unit.memory)
    let mapping: RemoteMapping
    do throws(RemoteRefusal) {
      mapping = try state.withLock { state throws(RemoteRefusal) in
        lookup = unit.lookup(source, in: state.mode)
        return try answer(address, for: access, &lookup, &state)
      }
    } catch {
      switch error {
      case .interruptAddress:
        if recordsFault { noteUnclaimed() }
        throw .notMemory
      case .fault(let reason):
        if recordsFault {
          state.withLock { $0.counters.count(.faults) }
          unit.record(
            reason, lookup, from: source, address: address, isRead: !access.contains(.write), prefix: nil,
            type: .untranslated)
        }
        throw .translation
      }
    }
    unit.trace?.record(
      .remoteMapped,
      [
        .source(source), .hex("iova", mapping.range.first), .hex("last", mapping.range.last),
        .hex("gpa", mapping.physicalAddress), .flag("read", mapping.isReadable), .flag("write", mapping.isWritable),
      ])
    install(mapping)
  }

  /// Finds the mapping of a miss and records its tag.
  private func answer(
    _ address: UInt64, for access: DMAAccess, _ lookup: inout SourceLookup, _ state: inout State
  ) throws(RemoteRefusal) -> RemoteMapping {
    state.counters.count(.remoteMisses)
    defer {
      state.counters[.contextWalks] &+= lookup.contextReads
      state.counters[.pasidWalks] &+= lookup.pasidReads
    }
    if WalkRules.isInterruptAddress(address) { throw .interruptAddress }
    let found: (mapping: RemoteMapping, tag: RemoteContents.Tag)
    if state.mode.enabled {
      do throws(FaultReason) {
        found = try translated(address, for: access, &lookup, &state.counters)
      } catch {
        throw .fault(error)
      }
    } else {
      found = (
        walk.identity(address, last: .max),
        RemoteContents.Tag(source: lookup.source, domain: nil, pasid: 0, stages: nil)
      )
    }
    state.contents.add(found.tag)
    state.counters.count(.remoteMappings)
    return found.mapping
  }

  private func translated(
    _ address: UInt64, for access: DMAAccess, _ lookup: inout SourceLookup, _ counters: inout TranslationCounters
  ) throws(FaultReason) -> (RemoteMapping, RemoteContents.Tag) {
    let context = try lookup.context(for: .untranslated, pasid: nil)
    let path = try lookup.path(of: nil, isPrivileged: false, in: context).path
    let mapping: RemoteMapping
    switch path {
    case .unknown: throw .pasidEntryInvalid
    case .passThrough:
      guard !walk.rules.exceedsHost(address) else { throw lookup.mode.addressWidthFault }
      mapping = walk.identity(address, last: .lowBits(walk.rules.hostAddressWidth))
    case .first(let table, _):
      counters.count(table.nested == nil ? .firstStageWalks : .nestedWalks)
      mapping = try walk.mapping(address, for: access, through: path, in: lookup.mode)
    case .second:
      counters.count(.secondStageWalks)
      mapping = try walk.mapping(address, for: access, through: path, in: lookup.mode)
    }
    let pasid = if case .scalable(let entry) = context { entry.ridPASID(lookup.capabilities) } else { UInt32(0) }
    return (
      mapping,
      RemoteContents.Tag(source: lookup.source, domain: path.domain, pasid: pasid, stages: path.tag?.stages)
    )
  }

  func complete(_ number: UInt64) { unit.complete(number, of: self) }

  func forgetAll() {
    unit.queue.withLock { pending in
      guard loseEverything() else { return }
      pending.append(self)
      unit.complete(&pending)
    }
    unit.resumeIfAsked()
  }

  func noteUnclaimed() { requester.receiveMasterAbort() }

  func disconnect() {
    if close() { unit.remove(self) }
  }

  // MARK: The unit's side

  /// Adopts the mode of the unit's registers. An invalidation of everything follows.
  func set(_ mode: TranslationMode) { state.withLock { $0.mode = mode } }

  /// Queues the ranges that the remote loses by an invalidation.
  /// - Returns: whether the caller must wait for misses in flight and send the ranges.
  func lose(_ invalidation: Invalidation) -> Bool {
    let source = requester.id
    return state.withLock { state in
      switch state.contents.loss(
        by: invalidation, source: source, isScalable: state.mode.tableMode == .scalable)
      {
      case .nothing: return false
      case .pages(let pages): state.queued.add(DMARange(first: pages.first, last: pages.last))
      case .everything: Self.loseEverything(&state)
      }
      return true
    }
  }

  /// - Returns: whether the remote may hold anything.
  private func loseEverything() -> Bool {
    state.withLock { state in
      guard state.contents.tag != nil else { return false }
      Self.loseEverything(&state)
      return true
    }
  }

  private static func loseEverything(_ state: inout State) {
    state.contents.removeAll()
    state.queued.add(.all)
  }

  /// Sends the queued ranges to the remote. The caller holds the unit's `queue`.
  func send(number: UInt64) -> RemoteInvalidation {
    let ranges = state.withLock { state in
      guard state.isConnected else { return [DMARange]() }
      state.counters.count(.remoteInvalidations)
      return state.queued.take()
    }
    if ranges.isEmpty { return .done }
    for range in ranges {
      unit.trace?.record(
        .remoteUnmapped, [.source(requester.id), .hex("iova", range.first), .hex("last", range.last)])
    }
    return remote.invalidate(ranges, number: number)
  }

  /// Cuts off the remote, because it has not completed an invalidation in time.
  func timedOut() {
    guard close() else { return }
    unit.trace?.record(.remoteCutOff, [.source(requester.id)])
    remote.cutOff()
    unit.remove(self)
  }

  /// - Returns: whether the port was connected.
  private func close() -> Bool {
    state.withLock { state in
      defer { state.isConnected = false }
      return state.isConnected
    }
  }

  var counters: TranslationCounters { state.withLock { $0.counters } }

  var inspection: RemoteCache {
    state.withLock { state in
      RemoteCache(
        source: requester.id, contents: RemoteCache.Contents(state.contents), misses: state.counters[.remoteMisses],
        mappings: state.counters[.remoteMappings], invalidations: state.counters[.remoteInvalidations])
    }
  }
}
