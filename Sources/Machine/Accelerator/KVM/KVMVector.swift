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

/// An eventfd that the kernel turns into the message (irqfd). Where the kernel's table of routes has no room, each
/// message is a call of its own: `signal` makes it, or the relay where VFIO signals the eventfd.
final class KVMVector: MessageVector {
  private let table: any VectorTable
  private let relay: InterruptRelay
  private let gsi: UInt32
  /// nil where the host gives no more descriptors.
  private let eventfd: InterruptRelay.Event?
  /// The kernel turns the eventfd into the message.
  private var attached = false
  /// VFIO has the eventfd.
  private var isGivenOut = false
  private var message: InterruptMessage?

  init(table: any VectorTable, relay: InterruptRelay) {
    self.table = table
    self.relay = relay
    gsi = table.allocate()
    eventfd = try? InterruptRelay.Event()
  }

  deinit {
    if let eventfd {
      relay.stop(eventfd)
      if attached { try? table.detach(eventfd.descriptor.rawValue, from: gsi) }
    }
    table.free(gsi)
  }

  func set(_ message: InterruptMessage) {
    self.message = message
    guard let eventfd else { return }
    do {
      try table.set(gsi, address: message.address, data: message.data)
      if !attached {
        relay.stop(eventfd)
        // The kernel sends now what was signalled meanwhile.
        try table.attach(eventfd.descriptor.rawValue, to: gsi)
      }
      attached = true
    } catch {
      if attached { try? table.detach(eventfd.descriptor.rawValue, from: gsi) }
      attached = false
      if isGivenOut { relay.send(message, at: eventfd) }
    }
  }

  var event: Int32? {
    guard let eventfd else { return nil }
    isGivenOut = true
    if !attached, let message { relay.send(message, at: eventfd) }
    return eventfd.descriptor.rawValue
  }

  func hold() {
    message = nil
    guard let eventfd else { return }
    relay.stop(eventfd)
    guard attached else { return }
    try? table.detach(eventfd.descriptor.rawValue, from: gsi)
    attached = false
  }

  func signal() {
    if attached, let eventfd {
      eventfd.descriptor.signal()
    } else if let message {
      relay.send(message)
    }
  }
}
