import Linux
import Synchronization

/// Reports a termination signal even while the machine's thread hangs in a system call, for example when it opens a
/// file of a server that does not respond. The signal stays pending, so that the machine can take it, too.
final class TerminationWatch: Sendable {
  private let registration = Mutex<EventLoop.Registration?>(nil)

  /// - Parameters:
  ///   - signals: a descriptor that has input while a signal is pending. It must stay open as long as this object
  ///     exists. The loop's thread must block the signals.
  ///   - handler: called once, on the loop's thread. Must not block.
  init(_ signals: Int32, on loop: EventLoop, _ handler: @escaping @Sendable () -> Void) throws(SystemError) {
    let registered = try loop.register(signals, []) { [weak self] _ in
      guard let registration = self?.registration.withLock({ $0.take() }) else { return }
      registration.cancel()
      handler()
    }
    registration.withLock { $0 = registered }
    registered.setInterest(.readable)
  }
}
