import Devices
import Synchronization

/// The link between a netdev and its device: up while the backend is connected and the monitor allows it (`set_link`).
///
/// Lock order: its lock is a leaf. The device is called without it.
final class NetdevLink: Sendable {
  private struct State {
    weak var frontend: (any NetworkFrontend)?
    var isConnected: Bool
    var isEnabled = true

    var isUp: Bool { isConnected && isEnabled }
  }

  private let state: Mutex<State>

  init(isConnected: Bool) { state = Mutex(State(isConnected: isConnected)) }

  var isUp: Bool { state.withLock { $0.isUp } }
  var isConnected: Bool { state.withLock { $0.isConnected } }
  /// The device that uses the netdev; nil if there is none.
  var frontend: (any NetworkFrontend)? { state.withLock { $0.frontend } }

  func connect(to frontend: any NetworkFrontend) { state.withLock { $0.frontend = frontend } }

  /// Called by the backend, which must hold no lock that calls from the device take.
  func setConnected(_ isConnected: Bool) { change { $0.isConnected = isConnected } }

  func setEnabled(_ isEnabled: Bool) { change { $0.isEnabled = isEnabled } }

  private func change(_ body: (inout State) -> Void) {
    let frontend = state.withLock { state -> (any NetworkFrontend)? in
      let wasUp = state.isUp
      body(&state)
      return state.isUp == wasUp ? nil : state.frontend
    }
    frontend?.linkChanged()
  }
}
