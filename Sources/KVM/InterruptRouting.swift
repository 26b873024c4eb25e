import CLinux
import Linux
import Synchronization

/// The kernel's table of interrupt routes: the message that each GSI sends. The kernel can only replace the whole
/// table, which is slow, so setting an entry to the value it already has makes no call.
///
/// Lock order: code that holds its lock takes no other lock.
public final class InterruptRouting: Sendable {
  private struct State {
    /// By GSI; nil if the number is allocated but has no message.
    var entries: [UInt32: kvm_irq_routing_entry] = [:]
    var taken: Set<UInt32> = []
  }

  private let machine: Int32
  private let firstFree: UInt32
  private let state = Mutex(State())

  /// - Parameter machine: the virtual machine's descriptor, which must stay open while this object is in use.
  init(machine: Int32, firstFree: Int) {
    self.machine = machine
    self.firstFree = UInt32(firstFree)
  }

  /// Allocates a GSI above the IOAPIC's pins.
  public func allocate() -> UInt32 {
    state.withLock { state in
      var gsi = firstFree
      while state.taken.contains(gsi) { gsi += 1 }
      state.taken.insert(gsi)
      return gsi
    }
  }

  public func free(_ gsi: UInt32) {
    state.withLock { state in
      state.taken.remove(gsi)
      if state.entries.removeValue(forKey: gsi) != nil { _ = replace(state) }
    }
  }

  /// Sets the message that a GSI sends.
  public func set(_ gsi: UInt32, address: UInt64, data: UInt32) throws(KVMError) {
    let answer = state.withLock { state -> Int32 in
      var entry = kvm_irq_routing_entry()
      entry.gsi = gsi
      entry.type = UInt32(KVM_IRQ_ROUTING_MSI)
      entry.msi.address_lo = UInt32(truncatingIfNeeded: address)
      entry.msi.address_hi = UInt32(truncatingIfNeeded: address >> 32)
      entry.msi.data = data
      let old = state.entries[gsi]
      if let old = old?.msi, old.address_lo == entry.msi.address_lo, old.address_hi == entry.msi.address_hi,
        old.data == data
      {
        return 0
      }
      state.entries[gsi] = entry
      let answer = replace(state)
      // Restore the former entry. With the refused one, the kernel would refuse every later table as well.
      if answer < 0 { state.entries[gsi] = old }
      return answer
    }
    try VirtualMachine.check(answer, "KVM_SET_GSI_ROUTING")
  }

  /// Removes a GSI's message; the number stays allocated.
  public func clear(_ gsi: UInt32) {
    state.withLock { state in
      if state.entries.removeValue(forKey: gsi) != nil { _ = replace(state) }
    }
  }

  /// Makes the eventfd send the GSI's message (KVM_IRQFD).
  public func attach(_ event: Int32, to gsi: UInt32) throws(KVMError) { try irqfd(event, gsi, flags: 0) }

  /// Undoes `attach`.
  public func detach(_ event: Int32, from gsi: UInt32) throws(KVMError) {
    try irqfd(event, gsi, flags: UInt32(KVM_IRQFD_FLAG_DEASSIGN))
  }

  private func irqfd(_ event: Int32, _ gsi: UInt32, flags: UInt32) throws(KVMError) {
    var request = kvm_irqfd()
    request.fd = UInt32(bitPattern: event)
    request.gsi = gsi
    request.flags = flags
    // SAFETY: the kernel reads the structure.
    try VirtualMachine.check(unsafe nestling_ioctl(machine, KVM_IRQFD, &request), "KVM_IRQFD")
  }

  private func replace(_ state: State) -> Int32 {
    let header = MemoryLayout<kvm_irq_routing>.stride
    let stride = MemoryLayout<kvm_irq_routing_entry>.stride
    var buffer = [UInt64](repeating: 0, count: (header + state.entries.count * stride) / 8)
    // SAFETY: the buffer holds the header and the number of entries that the header states.
    return unsafe buffer.withUnsafeMutableBytes { bytes in
      unsafe bytes.storeBytes(of: UInt32(state.entries.count), as: UInt32.self)
      for (index, entry) in state.entries.values.enumerated() {
        unsafe bytes.storeBytes(of: entry, toByteOffset: header + index * stride, as: kvm_irq_routing_entry.self)
      }
      return unsafe nestling_ioctl(machine, KVM_SET_GSI_ROUTING, bytes.baseAddress)
    }
  }
}
