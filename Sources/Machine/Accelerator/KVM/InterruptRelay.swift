import Hardware
import Linux
import Synchronization

/// Sends messages for eventfds that the kernel has no route for, and that others signal: a thread waits for them, which
/// is made when there is the first.
///
/// Lock order: a route's lock, then those here; a message is sent with the loop's held, so that none of an eventfd's is
/// on its way once `stop` or another `send` has returned.
final class InterruptRelay: Sendable {
  /// An eventfd that outlives the wait for it.
  final class Event: Sendable {
    let descriptor: EventDescriptor
    init() throws(SystemError) { descriptor = try EventDescriptor() }
  }

  private let sender: @Sendable (InterruptMessage) -> Void
  private let loop = Mutex<Loop?>(nil)

  /// - Parameter sender: sends a message to the local APICs; it waits for nothing.
  init(_ sender: @escaping @Sendable (InterruptMessage) -> Void) { self.sender = sender }

  deinit { loop.withLock { $0?.end() } }

  /// Sends a message now.
  func send(_ message: InterruptMessage) { sender(message) }

  /// Has each signal of the eventfd send the message from now on, those that wait already included.
  func send(_ message: InterruptMessage, at event: Event) {
    let loop = loop.withLock { loop in
      // Where the host gives neither thread nor descriptor, the next change of the route tries again.
      if loop == nil { loop = try? Loop(sender) }
      return loop
    }
    loop?.set(message, at: event)
  }

  /// From now on signals of the eventfd add up.
  func stop(_ event: Event) { loop.withLock { $0 }?.set(nil, at: event) }

  private final class Loop: Sendable {
    private struct Entry {
      let event: Event
      let message: InterruptMessage
    }

    private let changed: EventDescriptor
    private let sender: @Sendable (InterruptMessage) -> Void
    /// By descriptor; nil at the end.
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
      // One that is gone is found out when it is signalled.
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
