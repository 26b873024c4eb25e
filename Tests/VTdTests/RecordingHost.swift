import Synchronization

@testable import VTd

/// Host translation of several functions. It records each call and refuses what the test asks it to refuse.
final class RecordingHost: Sendable {
  enum Event: Hashable, Sendable {
    case bind(String, HostBinding)
    case bindPASID(String, UInt32, HostBinding)
    case invalidate(GuestFirstStage, [FirstStageInvalidation])
    /// The table has no reference left.
    case free(GuestFirstStage)
  }

  private struct State {
    var log: [Event] = []
    var tables: [GuestFirstStage: WeakTable] = [:]
    var refusesBindings = false
    var refusesInvalidations = false
    var refusedPASIDs: Set<UInt32> = []
    var undetachablePASIDs: Set<UInt32> = []
    var refusedInvalidations: Set<GuestFirstStage> = []
  }
  private struct WeakTable { weak var table: Table? }
  private let state = Mutex(State())

  func take() -> [Event] {
    state.withLock { state in
      defer { state.log = [] }
      return state.log
    }
  }

  var refusesBindings: Bool {
    get { state.withLock { $0.refusesBindings } }
    set { state.withLock { $0.refusesBindings = newValue } }
  }
  var refusesInvalidations: Bool {
    get { state.withLock { $0.refusesInvalidations } }
    set { state.withLock { $0.refusesInvalidations = newValue } }
  }

  /// The PASIDs whose binding to a table the host refuses.
  var refusedPASIDs: Set<UInt32> {
    get { state.withLock { $0.refusedPASIDs } }
    set { state.withLock { $0.refusedPASIDs = newValue } }
  }
  /// The PASIDs that the host fails to block.
  var undetachablePASIDs: Set<UInt32> {
    get { state.withLock { $0.undetachablePASIDs } }
    set { state.withLock { $0.undetachablePASIDs = newValue } }
  }
  /// The tables whose invalidation fails.
  var refusedInvalidations: Set<GuestFirstStage> {
    get { state.withLock { $0.refusedInvalidations } }
    set { state.withLock { $0.refusedInvalidations = newValue } }
  }

  final class Function: HostTranslation {
    let name: String
    let pasidWidth: Int
    private let host: RecordingHost

    init(_ name: String, _ host: RecordingHost, pasidWidth: Int = 0) {
      self.name = name
      self.pasidWidth = pasidWidth
      self.host = host
    }

    func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)? {
      let (table, isRefused) = host.state.withLock { state -> (Table?, Bool) in
        state.log.append(pasid.map { .bindPASID(name, $0, binding) } ?? .bind(name, binding))
        let isRefused = state.refusesBindings || pasid.map(state.refusedPASIDs.contains) == true
        switch binding {
        case .blocked: return (nil, pasid.map(state.undetachablePASIDs.contains) == true)
        case .secondStage: return (nil, isRefused)
        case .firstStage(let stage):
          if isRefused { return (nil, true) }
          let table = state.tables[stage]?.table ?? Table(stage, host)
          state.tables[stage] = WeakTable(table: table)
          return (table, false)
        }
      }
      if isRefused { throw HostRefusal() }
      return table
    }
  }

  final class Table: HostFirstStage {
    let stage: GuestFirstStage
    private let host: RecordingHost

    init(_ stage: GuestFirstStage, _ host: RecordingHost) {
      self.stage = stage
      self.host = host
    }

    deinit { host.state.withLock { $0.log.append(.free(stage)) } }

    func invalidate(_ invalidations: [FirstStageInvalidation]) throws(HostRefusal) {
      let isRefused = host.state.withLock { state in
        state.log.append(.invalidate(stage, invalidations))
        return state.refusesInvalidations || state.refusedInvalidations.contains(stage)
      }
      if isRefused { throw HostRefusal() }
    }
  }
}
