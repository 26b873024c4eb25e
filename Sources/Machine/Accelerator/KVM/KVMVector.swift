import Hardware
import KVM
import Linux

/// The kernel's interrupt routing table, as a vector uses it.
protocol VectorTable: AnyObject, Sendable {
  func allocate() -> UInt32
  func free(_ gsi: UInt32)
  func set(_ gsi: UInt32, address: UInt64, data: UInt32) throws(KVMError)
  func attach(_ event: Int32, to gsi: UInt32) throws(KVMError)
  func detach(_ event: Int32, from gsi: UInt32) throws(KVMError)
}

extension InterruptRouting: VectorTable {}

/// One MSI or MSI-X vector.
///
/// A device in this process sends each message with KVM_SIGNAL_MSI, which needs no route in the kernel's table. A
/// change of that table rewrites all of it: drivers set vectors often, and each rewrite takes milliseconds if the host
/// is itself a guest. Others, such as VFIO, signal an eventfd, and the kernel sends the message at each signal (irqfd).
/// If the table has no room for that route, the relay sends the message instead.
final class KVMVector: MessageVector {
  /// The eventfd that others signal, with its route number (GSI) in the kernel's table.
  private struct Outlet {
    let event: InterruptRelay.Event
    let gsi: UInt32
    /// Whether the kernel sends the message at each signal.
    var isAttached = false

    var descriptor: Int32 { event.descriptor.rawValue }
  }

  private let table: any VectorTable
  private let relay: InterruptRelay
  /// The eventfd and its route, made at the first use of `event`.
  private var outlet: Outlet?
  private var message: InterruptMessage?

  init(table: any VectorTable, relay: InterruptRelay) {
    self.table = table
    self.relay = relay
  }

  deinit {
    disconnect()
    if let outlet { table.free(outlet.gsi) }
  }

  func set(_ message: InterruptMessage) {
    self.message = message
    connect(message)
  }

  var event: Int32? {
    if outlet == nil, let event = try? InterruptRelay.Event() {
      outlet = Outlet(event: event, gsi: table.allocate())
      if let message { connect(message) }
    }
    return outlet?.descriptor
  }

  func hold() {
    message = nil
    disconnect()
  }

  var hasPendingSignal: Bool {
    guard let outlet, !outlet.isAttached else { return false }
    return Poll.readable([outlet.descriptor], milliseconds: 0)[0]
  }

  func signal() {
    if let outlet, outlet.isAttached {
      outlet.event.descriptor.signal()
    } else if let message {
      relay.send(message)
    }
  }

  /// Makes signals of the eventfd send this message from now on.
  private func connect(_ message: InterruptMessage) {
    guard let outlet else { return }
    do {
      try table.set(outlet.gsi, address: message.address, data: message.data)
      if !outlet.isAttached {
        relay.stop(outlet.event)
        // In this call the kernel sends the message if the eventfd has a pending signal.
        try table.attach(outlet.descriptor, to: outlet.gsi)
        self.outlet?.isAttached = true
      }
    } catch {
      disconnect()
      relay.send(message, at: outlet.event)
    }
  }

  /// Leaves signals of the eventfd pending from now on.
  private func disconnect() {
    guard let outlet else { return }
    relay.stop(outlet.event)
    guard outlet.isAttached else { return }
    try? table.detach(outlet.descriptor, from: outlet.gsi)
    self.outlet?.isAttached = false
  }
}
