import CLinux
import Glibc
import Linux

/// A virtual machine with a split interrupt controller: the kernel emulates the local APICs and Nestling the IOAPIC, so
/// that each interrupt passes the remapper.
public final class VirtualMachine: Sendable {
  public let system: KVMSystem
  public let routing: InterruptRouting
  let file: FileDescriptor
  let slotNumbers: SlotNumbers
  /// The guest's RAM, which must stay mapped as long as the kernel has its address.
  private let memory: GuestMemory

  /// - Parameter ioapicPins: the number of IOAPIC pins, which are the first GSIs. The EOI of a level-triggered
  ///   interrupt that is routed to one of them is an exit.
  public init(system: KVMSystem, memory: GuestMemory, ioapicPins: Int) throws(KVMError) {
    self.system = system
    self.memory = memory
    slotNumbers = SlotNumbers(from: memory.regions.count)
    let answer = nestling_ioctl_value(system.file.rawValue, KVM_CREATE_VM, 0)
    if answer < 0 { throw .call(SystemError("KVM_CREATE_VM", code: -answer)) }
    file = FileDescriptor(owning: answer)
    routing = InterruptRouting(machine: answer, firstFree: ioapicPins)

    // KVM on Intel needs four pages that the guest does not use. They lie below the firmware's usual place, as in QEMU.
    try Self.check(nestling_ioctl_value(answer, KVM_SET_TSS_ADDR, 0xfeff_d000), "KVM_SET_TSS_ADDR")
    var identity: UInt64 = 0xfeff_c000
    // SAFETY: the request takes eight bytes.
    try Self.check(unsafe nestling_ioctl(answer, KVM_SET_IDENTITY_MAP_ADDR, &identity), "KVM_SET_IDENTITY_MAP_ADDR")
    try enable(Int(KVM_CAP_SPLIT_IRQCHIP), UInt64(ioapicPins), "KVM_CAP_SPLIT_IRQCHIP")
    if system.extent(of: Int(KVM_CAP_X2APIC_API)) != 0 {
      let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
      try enable(Int(KVM_CAP_X2APIC_API), UInt64(flags), "KVM_CAP_X2APIC_API")
    }
    for (slot, region) in memory.regions.enumerated() {
      var slot = kvm_userspace_memory_region(
        slot: UInt32(slot), flags: 0, guest_phys_addr: region.address, memory_size: region.size,
        userspace_addr: memory.hostAddress(of: region))
      // SAFETY: the kernel reads the structure; the memory that it names stays mapped as long as this object exists.
      try Self.check(
        unsafe nestling_ioctl(answer, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION")
    }
  }

  static func check(_ answer: Int32, _ call: String) throws(KVMError) {
    if answer < 0 { throw .call(SystemError(call, code: -answer)) }
  }

  private func enable(_ capability: Int, _ argument: UInt64, _ name: String) throws(KVMError) {
    var request = kvm_enable_cap()
    request.cap = UInt32(capability)
    request.args.0 = argument
    // SAFETY: the kernel reads the structure.
    try Self.check(unsafe nestling_ioctl(file.rawValue, KVM_ENABLE_CAP, &request), name)
  }

  /// Sends one message to the local APICs (KVM_SIGNAL_MSI).
  public func signal(address: UInt64, data: UInt32) {
    var message = kvm_msi()
    message.address_lo = UInt32(truncatingIfNeeded: address)
    message.address_hi = UInt32(truncatingIfNeeded: address >> 32)
    message.data = data
    // SAFETY: the kernel reads the structure. A message that reaches no APIC is lost, as on hardware.
    _ = unsafe nestling_ioctl(file.rawValue, KVM_SIGNAL_MSI, &message)
  }

  /// Makes each write to this guest physical address, of any width, signal the eventfd without an exit (KVM_IOEVENTFD).
  public func bind(_ event: Int32, toWriteAt address: UInt64) throws(KVMError) {
    try ioeventfd(event, address, flags: 0)
  }

  /// Undoes `bind`.
  public func unbind(_ event: Int32, fromWriteAt address: UInt64) throws(KVMError) {
    try ioeventfd(event, address, flags: UInt32(KVM_IOEVENTFD_FLAG_DEASSIGN))
  }

  private func ioeventfd(_ event: Int32, _ address: UInt64, flags: UInt32) throws(KVMError) {
    var request = kvm_ioeventfd()
    request.addr = address
    request.len = system.extent(of: Int(KVM_CAP_IOEVENTFD_ANY_LENGTH)) != 0 ? 0 : 2
    request.fd = event
    request.flags = flags
    // SAFETY: the kernel reads the structure.
    try Self.check(unsafe nestling_ioctl(file.rawValue, KVM_IOEVENTFD, &request), "KVM_IOEVENTFD")
  }
}
