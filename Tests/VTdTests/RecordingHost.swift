import Synchronization

@testable import VTd

/// Host translation of several functions. It records each call and refuses what the test asks it to refuse.
final class RecordingHost: Sendable {
  enum Event: Hashable, Sendable {
    case bind(String, HostBinding)
    case invalidate(GuestFirstStage, [FirstStageInvalidation])
    /// The table has no reference left.
    case free(GuestFirstStage)
  }

  private struct State {
    var log: [Event] = []
    var tables: [GuestFirstStage: WeakTable] = [:]
    var refusesBindings = false
    var refusesInvalidations = false
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

  final class Function: HostTranslation {
    let name: String
    private let host: RecordingHost

    init(_ name: String, _ host: RecordingHost) {
      self.name = name
      self.host = host
    }

    func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)? {
      let (table, isRefused) = host.state.withLock { state -> (Table?, Bool) in
        state.log.append(.bind(name, binding))
        switch binding {
        case .blocked: return (nil, false)
        case .secondStage: return (nil, state.refusesBindings)
        case .firstStage(let stage):
          if state.refusesBindings { return (nil, true) }
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
        return state.refusesInvalidations
      }
      if isRefused { throw HostRefusal() }
    }
  }
}
