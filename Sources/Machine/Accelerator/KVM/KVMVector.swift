import Hardware
import KVM
import Linux

/// The kernel's table of interrupt routes, as a vector uses it.
protocol VectorTable: AnyObject, Sendable {
  func allocate() -> UInt32
  func free(_ gsi: UInt32)
  func set(_ gsi: UInt32, address: UInt64, data: UInt32) throws(KVMError)
  func attach(_ event: Int32, to gsi: UInt32) throws(KVMError)
  func detach(_ event: Int32, from gsi: UInt32) throws(KVMError)
}

extension InterruptRouting: VectorTable {}

/// One vector of MSI or MSI-X.
///
/// A device in this process sends each message with KVM_SIGNAL_MSI. It needs no route in the kernel's table, which is
/// rewritten whole at each change: drivers set vectors often, and each rewrite takes milliseconds where the host is a
/// guest itself. Others, such as VFIO, signal an eventfd, which the kernel turns into the message (irqfd). Where the
/// table has no room for its route, the relay sends the messages of the eventfd.
final class KVMVector: MessageVector {
  /// The eventfd that others signal, with its number in the kernel's table.
  private struct Outlet {
    let event: InterruptRelay.Event
    let gsi: UInt32
    /// The kernel turns the eventfd into the message.
    var isAttached = false

    var descriptor: Int32 { event.descriptor.rawValue }
  }

  private let table: any VectorTable
  private let relay: InterruptRelay
  /// Made when others ask for the eventfd.
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

  func signal() {
    if let outlet, outlet.isAttached {
      outlet.event.descriptor.signal()
    } else if let message {
      relay.send(message)
    }
  }

  /// From now on the eventfd sends this message.
  private func connect(_ message: InterruptMessage) {
    guard let outlet else { return }
    do {
      try table.set(outlet.gsi, address: message.address, data: message.data)
      if !outlet.isAttached {
        relay.stop(outlet.event)
        // The kernel now sends what was signalled meanwhile.
        try table.attach(outlet.descriptor, to: outlet.gsi)
        self.outlet?.isAttached = true
      }
    } catch {
      disconnect()
      relay.send(message, at: outlet.event)
    }
  }

  /// From now on signals of the eventfd stay pending.
  private func disconnect() {
    guard let outlet else { return }
    relay.stop(outlet.event)
    guard outlet.isAttached else { return }
    try? table.detach(outlet.descriptor, from: outlet.gsi)
    self.outlet?.isAttached = false
  }
}
