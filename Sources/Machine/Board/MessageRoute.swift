import Hardware
import Synchronization

/// A route whose message goes through the remapper.
class MessageRoute: @unchecked Sendable {
  struct State {
    var message: InterruptMessage?
    /// The message after remapping; nil if the remapper blocks it, or if there is no message.
    var resolved: InterruptMessage?
    /// The port that writes the message, if it goes to memory; otherwise nil.
    var port: (any DMAPort)?
  }

  let delivery: InterruptDelivery
  let requester: Requester
  let state = Mutex(State())

  init(delivery: InterruptDelivery, requester: Requester) {
    self.delivery = delivery
    self.requester = requester
  }

  func set(_ message: InterruptMessage?) {
    state.withLock { state in
      state.message = message
      state.port = message.flatMap { $0.isInterrupt ? nil : state.port ?? delivery.makePort(for: requester) }
      update(&state)
    }
  }

  /// Resolves the route again, after the guest invalidated interrupt entries.
  func reconsider() { state.withLock { update(&$0) } }

  private func update(_ state: inout State) {
    let request = state.port == nil ? state.message : nil
    let resolved = request.flatMap { delivery.resolve($0, from: requester, recordFault: false) }
    guard resolved != state.resolved else { return }
    state.resolved = resolved
    install(resolved)
  }

  func signal() {
    state.withLock { state in
      guard let message = state.message else { return }
      if let resolved = state.resolved {
        delivery.note(message, resolved: resolved, from: requester)
        send(resolved)
      } else if let port = state.port {
        // If the unit blocks the write, it records a fault, and the message is lost.
        try? port.storeUInt32(message.data, at: message.address)
      } else if let resolved = delivery.resolve(message, from: requester, recordFault: true) {
        // Remap again: either this records the fault, or the entry has become valid.
        delivery.localInterrupts.send(resolved)
      }
    }
  }

  /// Passes the resolved message to the accelerator. Called with the route's lock held.
  func install(_ resolved: InterruptMessage?) {}

  /// Sends the message. Called with the route's lock held.
  /// - Parameter resolved: the message that was installed last.
  func send(_ resolved: InterruptMessage) {}
}

extension InterruptMessage {
  /// Whether the message is an interrupt request: a write to 0xFEEx_xxxx (VT-d 3.15).
  fileprivate var isInterrupt: Bool { address >> 20 == 0xfee }
}
