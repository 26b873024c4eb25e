import Hardware
import Linux
import Synchronization

/// Sends the messages of eventfds that VFIO signals and for which the kernel's routing table has no room. A loop waits
/// for all of these eventfds.
///
/// Lock order: the lock of a route, then an eventfd's lock, then the loop's. The loop's thread sends a message with the
/// eventfd's lock held. So it no longer sends an eventfd's old message after `stop` or another `send` has returned.
final class InterruptRelay: Sendable {
  /// An eventfd that stays open while the loop waits for it.
  final class Event: Sendable {
    private struct State {
      /// Nil while signals stay pending.
      var message: InterruptMessage?
      var registration: EventLoop.Registration?
    }

    let descriptor: EventDescriptor
    private let state = Mutex(State())

    init() throws(SystemError) { descriptor = try EventDescriptor() }

    deinit { stop() }

    fileprivate func set(
      _ message: InterruptMessage, on loop: EventLoop, _ sender: @escaping @Sendable (InterruptMessage) -> Void
    ) {
      state.withLock { state in
        state.message = message
        if state.registration != nil { return }
        // If the host has no memory left, the next change of the route tries again.
        state.registration = try? loop.register(descriptor.rawValue, .readable) { [weak self] _ in
          self?.forward(by: sender)
        }
      }
    }

    fileprivate func stop() {
      state.withLock { state in
        state.message = nil
        state.registration?.cancel()
        state.registration = nil
      }
    }

    private func forward(by sender: @Sendable (InterruptMessage) -> Void) {
      state.withLock { state in
        if let message = state.message, descriptor.take() { sender(message) }
      }
    }
  }

  private let loop: EventLoop
  private let sender: @Sendable (InterruptMessage) -> Void

  /// - Parameter sender: sends a message to the local APICs. Must not block.
  init(on loop: EventLoop, _ sender: @escaping @Sendable (InterruptMessage) -> Void) {
    self.loop = loop
    self.sender = sender
  }

  /// Sends a message now.
  func send(_ message: InterruptMessage) { sender(message) }

  /// Sends the message at each signal of the eventfd from now on, and for a signal that is pending now.
  func send(_ message: InterruptMessage, at event: Event) { event.set(message, on: loop, sender) }

  /// Leaves signals of the eventfd pending from now on.
  func stop(_ event: Event) { event.stop() }
}
