import Hardware
import KVM
import Linux

// The kernel's local APICs and doorbells, as the board asks for them.

extension VirtualMachine: LocalInterrupts {
  func send(_ message: InterruptMessage) { signal(address: message.address, data: message.data) }

  func makeVector() -> any MessageVector { KVMVector(machine: self) }

  /// The route stands in the kernel's table under the pin's number: that is how KVM knows which ends to report.
  func setLevelTriggered(pin: Int, _ message: InterruptMessage?) {
    if let message {
      try? routing.set(UInt32(pin), address: message.address, data: message.data)
    } else {
      routing.clear(UInt32(pin))
    }
  }
}

extension VirtualMachine: Doorbells {
  func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool {
    (try? bind(event, toWriteAt: address)) != nil
  }

  func detach(_ event: Int32, fromDoorbell address: UInt64) { try? unbind(event, fromWriteAt: address) }
}

extension VirtualMachine: DeviceMemory {
  func map(_ address: UInt64, size: UInt64, hostAddress: UInt64) -> (any AnyObject & Sendable)? {
    try? MemorySlot(of: self, at: address, size: size, hostAddress: hostAddress)
  }
}

extension HostDeviceFiles: HostDeviceRegistry {}

/// An eventfd that the kernel turns into the message (irqfd).
private final class KVMVector: MessageVector {
  private let machine: VirtualMachine
  private let gsi: UInt32
  /// nil where the host gives no more descriptors.
  private let eventfd: Event?
  private var attached = false
  private var message: InterruptMessage?

  private final class Event {
    let descriptor: EventDescriptor
    init() throws(SystemError) { descriptor = try EventDescriptor() }
  }

  init(machine: VirtualMachine) {
    self.machine = machine
    gsi = machine.routing.allocate()
    eventfd = try? Event()
  }

  deinit {
    if let eventfd, attached { try? machine.routing.detach(eventfd.descriptor.rawValue, from: gsi) }
    machine.routing.free(gsi)
  }

  func set(_ message: InterruptMessage) {
    self.message = message
    guard let eventfd else { return }
    do {
      try machine.routing.set(gsi, address: message.address, data: message.data)
      if !attached { try machine.routing.attach(eventfd.descriptor.rawValue, to: gsi) }
      attached = true
    } catch {
      // The kernel's table is full: `signal` then sends each message by a call of its own.
      if attached { try? machine.routing.detach(eventfd.descriptor.rawValue, from: gsi) }
      attached = false
    }
  }

  var event: Int32? { eventfd?.descriptor.rawValue }

  func hold() {
    guard let eventfd, attached else { return }
    try? machine.routing.detach(eventfd.descriptor.rawValue, from: gsi)
    attached = false
    message = nil
  }

  func signal() {
    if attached, let eventfd {
      eventfd.descriptor.signal()
    } else if let message {
      machine.send(message)
    }
  }
}
