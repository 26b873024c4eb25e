import Hardware
import Synchronization
import TestSupport
import VTd

/// A remote datapath that keeps every mapping that it gets, until it is invalidated, and answers accesses from its own
/// copy.
package final class KeepingRemote: RemoteIOTLB {
  package struct Call: Hashable, Sendable {
    package let ranges: [DMARange]
    package let number: UInt64
  }

  private struct State {
    var port: (any RemoteDMAPort)?
    var held: [RemoteMapping] = []
    var calls: [Call] = []
    var answersAtOnce = true
    var unanswered: [UInt64] = []
    var cutOffs = 0
    var onInvalidate: (@Sendable () -> Void)?
    var onInstall: (@Sendable () -> Void)?
  }

  package let asksAgainToWrite: Bool
  private let state = Mutex(State())

  package init(asksAgainToWrite: Bool = true) { self.asksAgainToWrite = asksAgainToWrite }

  package func connect(to unit: RemappingUnit, for requester: Requester) {
    let port = unit.connect(self, for: requester)
    state.withLock { $0.port = port }
  }

  package var port: (any RemoteDMAPort)? { state.withLock { $0.port } }
  package var held: [RemoteMapping] { state.withLock { $0.held } }
  package var calls: [Call] { state.withLock { $0.calls } }
  /// The ranges of all calls.
  package var ranges: [DMARange] { calls.flatMap(\.ranges) }
  package var cutOffs: Int { state.withLock { $0.cutOffs } }
  package func forgetCalls() { state.withLock { $0.calls = [] } }
  package func answerAtOnce(_ answers: Bool) { state.withLock { $0.answersAtOnce = answers } }
  /// Sets actions that run at the start of each invalidation, and before each mapping is kept.
  package func onInvalidate(_ action: (@Sendable () -> Void)?) { state.withLock { $0.onInvalidate = action } }
  package func onInstall(_ action: (@Sendable () -> Void)?) { state.withLock { $0.onInstall = action } }

  /// Completes the invalidations that the remote has not answered.
  package func answerAll() {
    let (port, numbers) = state.withLock { state in
      defer { state.unanswered = [] }
      return (state.port, state.unanswered)
    }
    for number in numbers { port?.complete(number) }
  }

  package func invalidate(_ ranges: [DMARange], number: UInt64) -> RemoteInvalidation {
    state.withLock { $0.onInvalidate }?()
    return state.withLock { state in
      state.calls.append(Call(ranges: ranges, number: number))
      state.held.removeAll { mapping in ranges.contains { $0.overlaps(mapping.range) } }
      if !state.answersAtOnce { state.unanswered.append(number) }
      return state.answersAtOnce ? .done : .later
    }
  }

  package func cutOff() {
    state.withLock { state in
      state.held = []
      state.cutOffs += 1
    }
  }

  /// The physical address of an access that the remote makes with a mapping that it holds, or nil.
  package func hit(_ address: UInt64, _ access: DMAAccess) -> UInt64? {
    state.withLock { state in
      state.held.first {
        $0.range.contains(address) && (!access.contains(.read) || $0.isReadable)
          && (!access.contains(.write) || $0.isWritable)
      }.map { $0.physicalAddress &+ (address &- $0.range.first) }
    }
  }

  /// Asks for a mapping and keeps it.
  package func miss(
    _ address: UInt64, _ access: DMAAccess = .read, recordsFault: Bool = true
  ) throws(DMAError) -> RemoteMapping? {
    var found: RemoteMapping?
    try port?.translate(address, for: access, recordsFault: recordsFault) { mapping in
      found = mapping
      state.withLock { $0.onInstall }?()
      state.withLock { $0.held.append(mapping) }
    }
    return found
  }

  /// Makes an access: with a mapping that the remote holds, or else after a miss.
  package func answer(_ address: UInt64, _ access: DMAAccess = .read) -> Answer {
    if let output = hit(address, access) { return .at(output, 8) }
    do {
      _ = try miss(address, access)
    } catch {
      return .refused(error)
    }
    return hit(address, access).map { .at($0, 8) } ?? .refused(.notMemory)
  }
}

extension Guest {
  /// Connects a remote that acts for a function.
  package func remote(_ source: RequesterID, asksAgainToWrite: Bool = true) -> KeepingRemote {
    let remote = KeepingRemote(asksAgainToWrite: asksAgainToWrite)
    remote.connect(to: unit, for: Requester(id: source, busMasterEnable: true))
    return remote
  }
}
