import Devices
import Synchronization

/// Who wants to know when the guest ends a level-triggered interrupt of a pin: a device behind which the wire really
/// is, beyond this machine.
///
/// Lock order: its lock is a leaf; handlers are called without it.
final class EOIListeners: Sendable {
  private struct State {
    var handlers: [Int: (pin: Int, handler: @Sendable () -> Void)] = [:]
    var next = 0
  }

  private let state = Mutex(State())

  /// - Returns: a number by which it is removed.
  func add(pin: Int, _ handler: @escaping @Sendable () -> Void) -> Int {
    state.withLock { state in
      state.next += 1
      state.handlers[state.next] = (pin, handler)
      return state.next
    }
  }

  func remove(_ number: Int) { state.withLock { _ = $0.handlers.removeValue(forKey: number) } }

  func ended(pin: Int) { tell { $0 == pin } }

  func ended(_ pins: PinSet) { tell { pins.contains($0) } }

  private func tell(_ isConcerned: (Int) -> Bool) {
    let handlers = state.withLock { state in
      state.handlers.isEmpty ? [] : state.handlers.values.filter { isConcerned($0.pin) }.map(\.handler)
    }
    for handler in handlers { handler() }
  }
}
