import Hardware
import Linux
import Synchronization

/// Sends the messages of eventfds that VFIO signals and for which the kernel's routing table has no room. One thread
/// waits for all of these eventfds. The first one starts the thread.
///
/// Lock order: the lock of a route, then this object's locks. The thread sends a message with the loop's lock held. So
/// the thread no longer sends an eventfd's old message after `stop` or another `send` has returned.
final class InterruptRelay: Sendable {
  /// An eventfd that stays open while the thread waits for it.
  final class Event: Sendable {
    let descriptor: EventDescriptor
    init() throws(SystemError) { descriptor = try EventDescriptor() }
  }

  private let sender: @Sendable (InterruptMessage) -> Void
  private let loop = Mutex<Loop?>(nil)

  /// - Parameter sender: sends a message to the local APICs. Must not block.
  init(_ sender: @escaping @Sendable (InterruptMessage) -> Void) { self.sender = sender }

  deinit { loop.withLock { $0?.end() } }

  /// Sends a message now.
  func send(_ message: InterruptMessage) { sender(message) }

  /// Sends the message at each signal of the eventfd from now on, and for a signal that is pending now.
  func send(_ message: InterruptMessage, at event: Event) {
    let loop = loop.withLock { loop in
      // If the host has no thread or descriptor left, the next change of the route tries again.
      if loop == nil { loop = try? Loop(sender) }
      return loop
    }
    loop?.set(message, at: event)
  }

  /// Leaves signals of the eventfd pending from now on.
  func stop(_ event: Event) { loop.withLock { $0 }?.set(nil, at: event) }

  private final class Loop: Sendable {
    private struct Entry {
      let event: Event
      let message: InterruptMessage
    }

    private let changed: EventDescriptor
    private let sender: @Sendable (InterruptMessage) -> Void
    /// By descriptor; nil when the loop ends.
    private let entries = Mutex<[Int32: Entry]?>([:])
    private let thread = Mutex<Thread?>(nil)

    init(_ sender: @escaping @Sendable (InterruptMessage) -> Void) throws(SystemError) {
      self.sender = sender
      changed = try EventDescriptor()
      let started = try Thread(name: "interrupt relay") { [self] in run() }
      thread.withLock { $0 = started }
    }

    func set(_ message: InterruptMessage?, at event: Event) {
      let isNew = entries.withLock { entries in
        let former = entries?.removeValue(forKey: event.descriptor.rawValue)
        if let message { entries?[event.descriptor.rawValue] = Entry(event: event, message: message) }
        return former == nil && message != nil
      }
      // The thread notices a removed entry when its eventfd is signalled.
      if isNew { changed.signal() }
    }

    func end() {
      entries.withLock { $0 = nil }
      changed.signal()
      thread.withLock { $0.take() }?.join()
    }

    private func run() {
      while let waiting = entries.withLock({ entries in entries.map { Array($0.keys) } }) {
        let ready = Poll.readable([changed.rawValue] + waiting)
        if ready[0] { changed.take() }
        for (descriptor, isReady) in zip(waiting, ready.dropFirst()) where isReady {
          entries.withLock { entries in
            guard let entry = entries?[descriptor], entry.event.descriptor.take() else { return }
            sender(entry.message)
          }
        }
      }
    }
  }
}
