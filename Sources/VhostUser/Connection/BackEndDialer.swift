import Linux
import Synchronization

/// The source of a session's connections.
public protocol BackEndDialer: AnyObject, Sendable {
  /// Whether a new connection may follow a lost one.
  var reconnects: Bool { get }

  /// Asks for the next connection. Never waits.
  /// - Parameter deliver: called once on the loop's thread, not within this call, with a socket or with the reason why
  ///   there is none. Not called after `cancel`.
  func dial(_ deliver: @escaping @Sendable (Result<PassedDescriptor, SystemError>) -> Void)

  /// Ends the wait for a connection, without waiting for a handler that runs.
  func cancel()
}

/// Connects to a back end that listens at a path. A lost connection is followed by tries in a fixed interval, if there is
/// one (`reconnect=`). The first connection is tried once.
public final class ClientDialer: BackEndDialer {
  private struct State {
    /// A connection that exists already.
    var first: PassedDescriptor?
    var hasConnected = false
  }

  private let path: String
  /// In nanoseconds.
  private let interval: UInt64?
  private let timer: EventLoop.Timer
  private let state: Mutex<State>

  /// - Parameters:
  ///   - first: a connection that exists already.
  ///   - interval: in nanoseconds; nil not to reconnect.
  public init(path: String, first: PassedDescriptor? = nil, interval: UInt64?, on loop: EventLoop) {
    self.path = path
    self.interval = interval
    timer = EventLoop.Timer(on: loop)
    state = Mutex(State(first: first))
  }

  public var reconnects: Bool { interval != nil }

  public func dial(_ deliver: @escaping @Sendable (Result<PassedDescriptor, SystemError>) -> Void) {
    let isFirst = state.withLock { !$0.hasConnected }
    // Not at once after a lost connection: a back end that refuses the device would be asked in a loop.
    let pause = isFirst ? 0 : interval ?? 0
    timer.start(at: Clock.monotonic() &+ pause) { [weak self] in self?.connect(deliver) }
  }

  private func connect(_ deliver: @escaping @Sendable (Result<PassedDescriptor, SystemError>) -> Void) {
    let (first, isFirst) = state.withLock { state in
      defer { state.hasConnected = true }
      return (state.first.take(), !state.hasConnected)
    }
    if let first { return deliver(.success(first)) }
    do throws(SystemError) {
      deliver(.success(PassedDescriptor(try FileDescriptor(beginningToConnectTo: path))))
    } catch {
      guard let interval, !isFirst else { return deliver(.failure(error)) }
      timer.start(at: Clock.monotonic() &+ interval) { [weak self] in self?.connect(deliver) }
    }
  }

  public func cancel() { timer.stop() }
}
