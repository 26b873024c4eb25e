import Hardware
import Synchronization
import VTdOracle

@testable import VTd

/// A function's translation cache that records each notification. It completes invalidations at once if configured so.
final class RecordingCache: TranslationCache {
  private struct State {
    var invalidations: [InvalidateRequest] = []
    var responses: [PageGroupResponse] = []
    var answersAtOnce: Bool
  }

  private let state: Mutex<State>
  private let port: any RequestPort

  init(_ port: any RequestPort, answersAtOnce: Bool = true) {
    self.port = port
    state = Mutex(State(answersAtOnce: answersAtOnce))
    port.connect(self)
  }

  var invalidations: [InvalidateRequest] { state.withLock { $0.invalidations } }
  var responses: [PageGroupResponse] { state.withLock { $0.responses } }
  func answerAtOnce(_ answers: Bool) { state.withLock { $0.answersAtOnce = answers } }

  func invalidate(_ request: InvalidateRequest) {
    let answers = state.withLock { state in
      state.invalidations.append(request)
      return state.answersAtOnce
    }
    if answers { port.completeInvalidations(1 << UInt32(request.tag)) }
  }

  func receive(_ response: PageGroupResponse) { state.withLock { $0.responses.append(response) } }
}

/// A timer that fires when the test calls `fire`.
final class HandTimer: OneShotTimer {
  private let handler = Mutex<(@Sendable () -> Void)?>(nil)

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    self.handler.withLock { $0 = handler }
  }

  var isRunning: Bool { handler.withLock { $0 != nil } }

  func fire() {
    let handler = handler.withLock { handler in
      defer { handler = nil }
      return handler
    }
    handler?()
  }
}

extension Guest {
  func requestPort(_ source: RequesterID) -> any RequestPort {
    unit.makeRequestPort(for: Requester(id: source, busMasterEnable: true))
  }

  /// Sets up scalable mode with one device: DTE, PASIDE and what `contextBits` adds.
  func startScalable(
    _ source: RequesterID, _ words: (UInt64, UInt64, UInt64), contextBits: UInt64 = 0xc
  ) -> ScalableTables {
    let tables = scalableTables(source: source, words: words)
    store(load(tables.context) | contextBits, at: tables.context)
    setRootTable(tables.root, scalable: true)
    enableTranslation()
    return tables
  }
}
