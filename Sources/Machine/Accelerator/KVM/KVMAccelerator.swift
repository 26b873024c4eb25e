import Devices
import Hardware
import KVM
import Linux
import Passthrough

/// The accelerator that uses Linux's KVM. The kernel implements the CPUs and the local APICs.
final class KVMAccelerator: Accelerator {
  let clock: any MachineClock
  private let device: String
  private let machine: VirtualMachine
  private let identification: ProcessorIdentification
  private let processorCount: Int
  private let files: HostDeviceFiles

  /// - Parameters:
  ///   - device: the path of KVM's device file, usually /dev/kvm.
  ///   - loop: serves timers, and vectors without a route in the kernel's table.
  init(device: String, memory: GuestMemory, processorCount: Int, loop: EventLoop) throws(StartError) {
    self.device = device
    clock = HostClock(on: loop)
    self.processorCount = processorCount
    do throws(KVMError) {
      let system = try KVMSystem(path: device)
      guard processorCount <= system.processorLimit else {
        throw .tooManyProcessors(asked: processorCount, most: system.processorLimit)
      }
      machine = try VirtualMachine(system: system, memory: memory, ioapicPins: IOAPIC.pinCount)
      files = HostDeviceFiles(of: machine)
      localInterrupts = KVMLocalInterrupts(machine, loop)
      identification = try ProcessorIdentification(system: system, processorCount: processorCount)
    } catch {
      throw .kvm(device: device, error)
    }
  }

  var physicalAddressWidth: Int { identification.physicalAddressWidth }
  let localInterrupts: any LocalInterrupts
  var doorbells: any Doorbells { machine }
  var deviceMemory: (any DeviceMemory)? { machine }
  var hostDeviceFiles: (any HostDeviceRegistry)? { files }

  func makeProcessors(board: Board) throws(StartError) -> any Processors {
    try mapError(
      try KVMProcessors(machine: machine, count: processorCount, identification: identification, board: board)
    ) { StartError.kvm(device: device, $0) }
  }
}

// KVM's implementation of the protocols that the board uses: local APICs, doorbells, device memory, host devices.

/// The local APICs in the kernel.
final class KVMLocalInterrupts: LocalInterrupts {
  private let machine: VirtualMachine
  private let relay: InterruptRelay

  init(_ machine: VirtualMachine, _ loop: EventLoop) {
    self.machine = machine
    relay = InterruptRelay(on: loop) { [machine] in machine.signal(address: $0.address, data: $0.data) }
  }

  func send(_ message: InterruptMessage) { machine.signal(address: message.address, data: message.data) }

  func makeVector() -> any MessageVector { KVMVector(table: machine.routing, relay: relay) }

  /// Sets the route with the pin's number in the kernel's table. From this table KVM determines the interrupts whose
  /// end it reports.
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
  public func map(_ address: UInt64, size: UInt64, hostAddress: UInt64) -> (any AnyObject & Sendable)? {
    try? MemorySlot(of: self, at: address, size: size, hostAddress: hostAddress)
  }
}

extension HostDeviceFiles: HostDeviceRegistry {}
