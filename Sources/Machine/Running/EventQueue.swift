import Linux
import Synchronization

/// Where events wait for the machine's own thread. Of what the guest does the first decides, and the rest is gone with
/// it; what the host asks for is done in order, but a wish to end goes before everything. A request that comes to
/// nothing, as the machine ends, is answered from here.
///
/// Lock order: its lock, then what the `onPost` handler takes. Requests are answered without it.
final class EventQueue: Sendable {
  private struct State {
    var events: [MachineEvent] = []
    var halt: (@Sendable () -> Void)?
    var isClosed = false
  }

  private let state = Mutex(State())
  private let descriptor: EventDescriptor

  init() throws(SystemError) { descriptor = try EventDescriptor() }

  /// Has input while there is an event.
  var rawValue: Int32 { descriptor.rawValue }

  /// - Parameter handler: called on the poster's thread, at once, for an event after which the guest must not run on.
  ///   It waits for nothing.
  func onPost(_ handler: (@Sendable () -> Void)?) { state.withLock { $0.halt = handler } }

  func post(_ event: MachineEvent) {
    // Together, so that the machine does not act on the event, and start anew, before the halt has come and gone.
    let isPosted = state.withLock { state in
      if state.isClosed { return false }
      state.events.append(event)
      if event.haltsGuest { state.halt?() }
      return true
    }
    if isPosted { descriptor.signal() } else { Self.refuse([event]) }
  }

  /// The machine ends: what waits here and what comes later is not acted on.
  func close() {
    let events = state.withLock { state in
      defer { state.events = [] }
      state.isClosed = true
      state.halt = nil
      return state.events
    }
    Self.refuse(events)
  }

  func take() -> MachineEvent? {
    descriptor.take()
    var dropped: [MachineEvent] = []
    defer { Self.refuse(dropped) }
    return state.withLock { state in
      if let quit = Self.takeQuit(&state, &dropped) { return quit }
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
    var dropped: [MachineEvent] = []
    defer { Self.refuse(dropped) }
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

  private static func refuse(_ events: [MachineEvent]) {
    for event in events {
      switch event {
      case .request(let pending): pending.answer(.ended)
      case .continuation(let rest): rest.cancel()
      default: break
      }
    }
  }
}
