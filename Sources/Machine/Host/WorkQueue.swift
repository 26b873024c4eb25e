import Linux
import Synchronization

/// Does pieces of work in order: what may wait for the host, so that no vCPU, monitor or reset waits for it.
protocol HostWork: AnyObject, Sendable {
  /// Has a piece of work done after those before it.
  /// - Parameter cancel: called instead of `run` where the work stops first, or the host has no thread to give.
  func submit(_ run: @escaping @Sendable () -> Void, orElse cancel: @escaping @Sendable () -> Void)
  /// Cancels what has not begun, and waits for what has, for a time: the host may never answer it.
  func stop()
}

/// Host work on a thread of its own.
///
/// Lock order: its lock is a leaf; work runs without it.
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

  /// - Parameter name: of the thread, which is made for the first piece of work.
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

  /// In milliseconds.
  private static let patience: UInt32 = 1000
}
