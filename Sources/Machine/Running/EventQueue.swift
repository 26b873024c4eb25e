import Linux
import Synchronization

/// The events that wait for the machine's thread. `take` returns `quit` first, and the other events in order. When it
/// returns an event of the guest, it drops all other events of the guest. When the machine ends, the queue answers the
/// requests that are left.
///
/// Lock order: its lock, then the locks that the `onPost` handler takes. Requests are answered without it.
final class EventQueue: Sendable {
  private struct State {
    var events: [MachineEvent] = []
    var halt: (@Sendable () -> Void)?
    var isClosed = false
  }

  private let state = Mutex(State())
  private let descriptor: EventDescriptor

  init() throws(SystemError) { descriptor = try EventDescriptor() }

  /// A descriptor that has input while there is an event.
  var rawValue: Int32 { descriptor.rawValue }

  /// - Parameter handler: stops the guest. Called on the poster's thread for each event after which the guest must not
  ///   continue. Must not block.
  func onPost(_ handler: (@Sendable () -> Void)?) { state.withLock { $0.halt = handler } }

  func post(_ event: MachineEvent) {
    // Append the event and halt the guest under one lock. Otherwise the machine could handle the event and restart the
    // CPUs in between, and the halt would stop the restarted CPUs.
    let isPosted = state.withLock { state in
      if state.isClosed { return false }
      state.events.append(event)
      if event.haltsGuest { state.halt?() }
      return true
    }
    if isPosted { descriptor.signal() } else { Self.cancel([event]) }
  }

  /// Cancels all events in the queue and all later ones, because the machine ends.
  func close() {
    let events = state.withLock { state in
      defer { state.events = [] }
      state.isClosed = true
      state.halt = nil
      return state.events
    }
    Self.cancel(events)
  }

  func take() -> MachineEvent? {
    descriptor.take()
    var dropped: [MachineEvent] = []
    defer { Self.cancel(dropped) }
    return state.withLock { state in
      if let quit = Self.takeQuit(&state, &dropped) { return quit }
      guard let event = state.events.first else { return nil }
      state.events.removeFirst()
      if !event.isRequest { state.events.removeAll { !$0.isRequest } }
      if !state.events.isEmpty { descriptor.signal() }
      return event
    }
  }

  /// Drops the events of the guest, after the CPUs have been stopped for a reset.
  /// - Returns: the `quit` event, if there is one. In that case all other events are cancelled.
  func forgetGuestEvents() -> MachineEvent? {
    var dropped: [MachineEvent] = []
    defer { Self.cancel(dropped) }
    return state.withLock { state in
      state.events.removeAll { !$0.isRequest }
      return Self.takeQuit(&state, &dropped)
    }
  }

  private static func takeQuit(_ state: inout State, _ dropped: inout [MachineEvent]) -> MachineEvent? {
    guard let index = state.events.firstIndex(where: { if case .quit = $0 { true } else { false } }) else { return nil }
    dropped = state.events
    state.events = []
    return dropped[index]
  }

  private static func cancel(_ events: [MachineEvent]) {
    for event in events {
      switch event {
      case .request(let pending): pending.answer(.ended)
      case .continuation(let continuation): continuation.cancel()
      default: break
      }
    }
  }
}
