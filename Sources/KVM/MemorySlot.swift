import CLinux
import Linux
import Synchronization

/// Host memory other than RAM that the guest's CPUs access without an exit: the registers of a passed-through device.
/// The slot is removed with the last reference.
public final class MemorySlot: Sendable {
  private let machine: VirtualMachine
  private let number: UInt32
  private let address: UInt64

  /// Adds the slot (KVM_SET_USER_MEMORY_REGION).
  /// - Parameters:
  ///   - address: guest physical, page-aligned; must not overlap another slot.
  ///   - size: in bytes, a multiple of the page size.
  ///   - hostAddress: page-aligned; must stay mapped as long as this object exists.
  public init(
    of machine: VirtualMachine, at address: UInt64, size: UInt64, hostAddress: UInt64
  ) throws(KVMError) {
    self.machine = machine
    self.address = address
    number = machine.slotNumbers.take()
    do {
      try Self.set(machine, number, address, size: size, hostAddress: hostAddress)
    } catch {
      machine.slotNumbers.giveBack(number)
      throw error
    }
  }

  deinit {
    // Size 0 removes the slot. When the call returns, no CPU is accessing it.
    try? Self.set(machine, number, address, size: 0, hostAddress: 0)
    machine.slotNumbers.giveBack(number)
  }

  static func set(
    _ machine: VirtualMachine, _ number: UInt32, _ address: UInt64, size: UInt64, hostAddress: UInt64
  ) throws(KVMError) {
    var slot = kvm_userspace_memory_region(
      slot: number, flags: 0, guest_phys_addr: address, memory_size: size, userspace_addr: hostAddress)
    // SAFETY: the kernel reads the structure; the slot's owner keeps the memory that it names mapped.
    try VirtualMachine.check(
      unsafe nestling_ioctl(machine.file.rawValue, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION")
  }
}

/// Free numbers of memory slots; RAM has the lowest ones.
///
/// Lock order: code that holds its lock takes no other lock.
final class SlotNumbers: Sendable {
  private struct State {
    var next: UInt32
    var free: [UInt32] = []
  }

  private let state: Mutex<State>

  init(from first: Int) { state = Mutex(State(next: UInt32(first))) }

  func take() -> UInt32 {
    state.withLock { state in
      if let number = state.free.popLast() { return number }
      defer { state.next += 1 }
      return state.next
    }
  }

  func giveBack(_ number: UInt32) { state.withLock { $0.free.append(number) } }
}
