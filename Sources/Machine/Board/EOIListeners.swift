import Devices
import Synchronization

/// Listeners for the end of interrupt (EOI) of level-triggered pins. A passed-through device listens because the host
/// masks the device's INTx line until the guest has ended the interrupt.
///
/// Lock order: code that holds its lock takes no other lock; handlers are called without it.
final class EOIListeners: Sendable {
  private struct State {
    var handlers: [Int: (pin: Int, handler: @Sendable () -> Void)] = [:]
    var next = 0
  }

  private let state = Mutex(State())

  /// - Returns: a number for `remove`.
  func add(pin: Int, _ handler: @escaping @Sendable () -> Void) -> Int {
    state.withLock { state in
      state.next += 1
      state.handlers[state.next] = (pin, handler)
      return state.next
    }
  }

  func remove(_ number: Int) { state.withLock { _ = $0.handlers.removeValue(forKey: number) } }

  func ended(pin: Int) { notify { $0 == pin } }

  func ended(_ pins: PinSet) { notify { pins.contains($0) } }

  private func notify(_ hasEnded: (_ pin: Int) -> Bool) {
    let handlers = state.withLock { state in
      state.handlers.isEmpty ? [] : state.handlers.values.filter { hasEnded($0.pin) }.map(\.handler)
    }
    for handler in handlers { handler() }
  }
}
