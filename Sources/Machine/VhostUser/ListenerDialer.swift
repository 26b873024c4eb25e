import Glibc
import Linux
import Synchronization
import VhostUser

/// Waits for back ends that connect to a chardev's listening socket (`server=on`). A back end that has left may come
/// back.
final class ListenerDialer: BackEndDialer {
  private struct State {
    var first: PassedDescriptor?
    var hasDialed = false
    var listening: EventLoop.Registration?
    var deliver: (@Sendable (Result<PassedDescriptor, SystemError>) -> Void)?
  }

  /// The longest wait for the first back end, in nanoseconds.
  private static let patience: UInt64 = 5_000_000_000
  /// The pause after a failed accept, in nanoseconds.
  private static let acceptPause: UInt64 = 100_000_000

  private let listener: ChardevInput.Listener
  private let loop: EventLoop
  private let timer: EventLoop.Timer
  private let retryTimer: EventLoop.Timer
  private let state: Mutex<State>

  /// - Parameter first: a connection that exists already.
  init(_ listener: ChardevInput.Listener, first: PassedDescriptor?, on loop: EventLoop) {
    self.listener = listener
    self.loop = loop
    timer = EventLoop.Timer(on: loop)
    retryTimer = EventLoop.Timer(on: loop)
    state = Mutex(State(first: first))
  }

  deinit { cancel() }

  let reconnects = true

  func dial(_ deliver: @escaping @Sendable (Result<PassedDescriptor, SystemError>) -> Void) {
    let (first, isFirst) = state.withLock { state in
      defer { state.hasDialed = true }
      state.deliver = deliver
      return (state.first.take(), !state.hasDialed)
    }
    if let first {
      return timer.start(at: 0) { [weak self] in self?.finish(.success(first)) }
    }
    do throws(SystemError) {
      let listening = try loop.register(listener.socket.rawValue, .readable) { [weak self] _ in self?.accept() }
      let former = state.withLock { state in
        defer { state.listening = listening }
        return state.listening
      }
      withExtendedLifetime(former) {}
    } catch {
      return timer.start(at: 0) { [weak self] in self?.finish(.failure(error)) }
    }
    // Only a device that is being built waits for its back end.
    guard isFirst else { return }
    timer.start(at: Clock.monotonic() &+ Self.patience) { [weak self] in
      self?.finish(.failure(SystemError("accept", code: ETIMEDOUT)))
    }
  }

  private func accept() {
    do throws(SystemError) {
      let target = try listener.socket.accept()
      finish(.success(PassedDescriptor(try FileDescriptor(duplicating: target.file.rawValue))))
    } catch {
      // The client is gone; or the host has too few free descriptors: then the next wait would report it again at once.
      state.withLock { $0.listening }?.setInterest([])
      retryTimer.start(at: Clock.monotonic() &+ Self.acceptPause) { [weak self] in
        self?.state.withLock { $0.listening }?.setInterest(.readable)
      }
    }
  }

  private func finish(_ result: Result<PassedDescriptor, SystemError>) {
    timer.stop()
    retryTimer.stop()
    let (deliver, listening) = state.withLock { state in
      defer {
        state.deliver = nil
        state.listening = nil
      }
      return (state.deliver, state.listening)
    }
    listening?.cancel()
    deliver?(result)
  }

  func cancel() {
    timer.stop()
    retryTimer.stop()
    let listening = state.withLock { state in
      defer {
        state.deliver = nil
        state.listening = nil
      }
      return state.listening
    }
    listening?.cancel()
  }
}
