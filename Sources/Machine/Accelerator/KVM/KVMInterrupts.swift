import Hardware
import KVM
import Linux

// KVM's implementation of the protocols that the board uses: local APICs, doorbells, device memory, host devices.

/// The local APICs in the kernel.
final class KVMLocalInterrupts: LocalInterrupts {
  private let machine: VirtualMachine
  private let relay: InterruptRelay

  init(_ machine: VirtualMachine) {
    self.machine = machine
    relay = InterruptRelay { [machine] in machine.signal(address: $0.address, data: $0.data) }
  }

  func send(_ message: InterruptMessage) { machine.signal(address: message.address, data: message.data) }

  func makeVector() -> any MessageVector { KVMVector(table: machine.routing, relay: relay) }

  /// Sets the route with the pin's number in the kernel's table, from which KVM knows which ends of interrupts to
  /// report.
  func setLevelTriggered(pin: Int, _ message: InterruptMessage?) {
    if let message {
      try? machine.routing.set(UInt32(pin), address: message.address, data: message.data)
    } else {
      machine.routing.clear(UInt32(pin))
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
