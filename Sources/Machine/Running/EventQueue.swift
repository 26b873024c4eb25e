import Linux
import Synchronization

/// Where events wait for the machine's own thread. Of what the guest does the first decides, and the rest is gone with
/// it; what the host asks for is done in order, but a wish to end goes before everything.
///
/// Lock order: its lock, then what the `onPost` handler takes.
final class EventQueue: Sendable {
  private struct State {
    var events: [MachineEvent] = []
    var halt: (@Sendable () -> Void)?
  }

  private let state = Mutex(State())
  private let descriptor: EventDescriptor

  init() throws(SystemError) { descriptor = try EventDescriptor() }

  /// Has input while there is an event.
  var rawValue: Int32 { descriptor.rawValue }

  /// - Parameter handler: called on the poster's thread, at once: the guest must not run on. It waits for nothing.
  func onPost(_ handler: (@Sendable () -> Void)?) { state.withLock { $0.halt = handler } }

  func post(_ event: MachineEvent) {
    // Together, so that the machine does not act on the event, and start anew, before the halt has come and gone.
    state.withLock { state in
      state.events.append(event)
      state.halt?()
    }
    descriptor.signal()
  }

  func take() -> MachineEvent? {
    descriptor.take()
    return state.withLock { state in
      if let quit = Self.takeQuit(&state) { return quit }
      guard let event = state.events.first else { return nil }
      state.events.removeFirst()
      if !event.isRequest { state.events.removeAll { !$0.isRequest } }
      if !state.events.isEmpty { descriptor.signal() }
      return event
    }
  }

  /// The CPUs have been stopped: what the guest did up to then is gone.
  /// - Returns: a wish to end, if there is one.
  func forgetGuestEvents() -> MachineEvent? {
    state.withLock { state in
      state.events.removeAll { !$0.isRequest }
      return Self.takeQuit(&state)
    }
  }

  private static func takeQuit(_ state: inout State) -> MachineEvent? {
    guard let index = state.events.firstIndex(where: { if case .quit = $0 { true } else { false } }) else { return nil }
    defer { state.events.removeAll() }
    return state.events[index]
  }
}
