import Linux
import Synchronization

/// Runs pieces of work in order. The work may wait for the host, so that no vCPU, monitor or reset needs to wait.
protocol HostWork: AnyObject, Sendable {
  /// Submits a piece of work, which runs after the earlier ones.
  /// - Parameter cancel: called instead of `run` if the queue stops first, or if the host has no thread.
  func submit(_ run: @escaping @Sendable () -> Void, orElse cancel: @escaping @Sendable () -> Void)
  /// Cancels work that has not begun. Waits for work in progress, but only for a limited time, because the host may
  /// never answer it.
  func stop()
}

/// Host work on one thread.
///
/// Lock order: code that holds its lock takes no other lock; work runs without it.
final class WorkQueue: HostWork {
  private struct Piece: Sendable {
    let run: @Sendable () -> Void
    let cancel: @Sendable () -> Void
  }

  private struct State {
    var pieces: [Piece] = []
    var thread: Thread?
    var isStopped = false
  }

  private let name: String
  private let available = Semaphore()
  private let state = Mutex(State())

  /// - Parameter name: the name of the thread, which starts with the first piece of work.
  init(name: String) { self.name = name }

  func submit(_ run: @escaping @Sendable () -> Void, orElse cancel: @escaping @Sendable () -> Void) {
    let piece = Piece(run: run, cancel: cancel)
    let isAccepted = state.withLock { state in
      if state.isStopped { return false }
      if state.thread == nil { state.thread = try? Thread(name: name) { [weak self] in self?.work() } }
      guard state.thread != nil else { return false }
      state.pieces.append(piece)
      return true
    }
    if isAccepted { available.signal() } else { cancel() }
  }

  private func work() {
    while true {
      available.wait()
      let piece = state.withLock { state -> Piece? in
        if state.isStopped || state.pieces.isEmpty { return nil }
        return state.pieces.removeFirst()
      }
      guard let piece else { return }
      piece.run()
    }
  }

  func stop() {
    let (pieces, thread) = state.withLock { state in
      defer {
        state.pieces = []
        state.thread = nil
        state.isStopped = true
      }
      return (state.pieces, state.thread)
    }
    available.signal()
    for piece in pieces { piece.cancel() }
    thread?.join(patience: Self.patience)
  }

  /// The longest time that `stop` waits for work in progress, in milliseconds.
  private static let patience: UInt32 = 1000
}
