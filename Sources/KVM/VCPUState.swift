import CLinux
import Linux

/// The architectural state of a vCPU that a reset must restore. It is read once, right after the vCPU's construction.
public struct VCPUState: Sendable {
  var registers = kvm_regs()
  var system = kvm_sregs()
  var floatingPoint = kvm_fpu()
  var localAPIC = kvm_lapic_state()
  var processing = kvm_mp_state()
  var events = kvm_vcpu_events()
  var debug = kvm_debugregs()
  var extendedControl = kvm_xcrs()
  var modelSpecific: [kvm_msr_entry] = []
}

extension VCPU {
  private func call(_ request: UInt32, _ argument: UnsafeMutableRawPointer, _ name: String) throws(KVMError) {
    // SAFETY: each caller passes the structure whose size the request number encodes.
    try VirtualMachine.check(unsafe nestling_ioctl(file.rawValue, request, argument), name)
  }

  /// Sets the CPUID entries (KVM_SET_CPUID2).
  public func setProcessorIdentification(_ entries: [kvm_cpuid_entry2]) throws(KVMError) {
    let header = MemoryLayout<kvm_cpuid2>.stride
    let stride = MemoryLayout<kvm_cpuid_entry2>.stride
    var buffer = [UInt64](repeating: 0, count: (header + entries.count * stride) / 8)
    // SAFETY: the buffer holds the header and the number of entries that the header states.
    let answer = unsafe buffer.withUnsafeMutableBytes { bytes in
      unsafe bytes.storeBytes(of: UInt32(entries.count), as: UInt32.self)
      for (index, entry) in entries.enumerated() {
        unsafe bytes.storeBytes(of: entry, toByteOffset: header + index * stride, as: kvm_cpuid_entry2.self)
      }
      return unsafe nestling_ioctl(file.rawValue, KVM_SET_CPUID2, bytes.baseAddress)
    }
    try VirtualMachine.check(answer, "KVM_SET_CPUID2")
  }

  /// Returns RIP, for error reports.
  public func instructionPointer() throws(KVMError) -> UInt64 {
    var registers = kvm_regs()
    try unsafe call(KVM_GET_REGS, &registers, "KVM_GET_REGS")
    return registers.rip
  }

  public func readState() throws(KVMError) -> VCPUState {
    var state = VCPUState()
    try unsafe call(KVM_GET_REGS, &state.registers, "KVM_GET_REGS")
    try unsafe call(KVM_GET_SREGS, &state.system, "KVM_GET_SREGS")
    try unsafe call(KVM_GET_FPU, &state.floatingPoint, "KVM_GET_FPU")
    try unsafe call(KVM_GET_LAPIC, &state.localAPIC, "KVM_GET_LAPIC")
    try unsafe call(KVM_GET_MP_STATE, &state.processing, "KVM_GET_MP_STATE")
    try unsafe call(KVM_GET_VCPU_EVENTS, &state.events, "KVM_GET_VCPU_EVENTS")
    try unsafe call(KVM_GET_DEBUGREGS, &state.debug, "KVM_GET_DEBUGREGS")
    if hasExtendedControl { try unsafe call(KVM_GET_XCRS, &state.extendedControl, "KVM_GET_XCRS") }
    for index in try stateRegisterIndices() where !Self.runningCounters.contains(index) {
      if let entry = modelSpecificRegister(index) { state.modelSpecific.append(entry) }
    }
    return state
  }

  /// Restores a state that `readState` returned.
  public func restore(_ state: VCPUState) throws(KVMError) {
    abandonAccess()
    var state = state
    try unsafe call(KVM_SET_MP_STATE, &state.processing, "KVM_SET_MP_STATE")
    if hasExtendedControl { try unsafe call(KVM_SET_XCRS, &state.extendedControl, "KVM_SET_XCRS") }
    try unsafe call(KVM_SET_SREGS, &state.system, "KVM_SET_SREGS")
    try unsafe call(KVM_SET_REGS, &state.registers, "KVM_SET_REGS")
    try unsafe call(KVM_SET_FPU, &state.floatingPoint, "KVM_SET_FPU")
    for entry in state.modelSpecific { setModelSpecificRegister(entry) }
    try unsafe call(KVM_SET_LAPIC, &state.localAPIC, "KVM_SET_LAPIC")
    try unsafe call(KVM_SET_VCPU_EVENTS, &state.events, "KVM_SET_VCPU_EVENTS")
    try unsafe call(KVM_SET_DEBUGREGS, &state.debug, "KVM_SET_DEBUGREGS")
  }

  func set(registers: kvm_regs, system: kvm_sregs) throws(KVMError) {
    var registers = registers
    var system = system
    try unsafe call(KVM_SET_SREGS, &system, "KVM_SET_SREGS")
    try unsafe call(KVM_SET_REGS, &registers, "KVM_SET_REGS")
  }

  /// MSRs that a reset does not restore. Time continues across a reset: IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST,
  /// IA32_TSC_DEADLINE. KVM_SET_SREGS sets the APIC base.
  private static let runningCounters: Set<UInt32> = [0x10, 0x3b, 0x6e0, 0x1b]

  private struct OneRegister {
    var header = kvm_msrs(nmsrs: 1, pad: 0)
    var entry = kvm_msr_entry()
  }

  /// Returns nil if this vCPU does not have the register.
  private func modelSpecificRegister(_ index: UInt32) -> kvm_msr_entry? {
    var request = OneRegister()
    request.entry.index = index
    // SAFETY: the header states that one entry follows it.
    let answer = unsafe nestling_ioctl(file.rawValue, KVM_GET_MSRS, &request)
    return answer == 1 ? request.entry : nil
  }

  /// Sets a register. KVM lists some read-only registers, too; they keep their value.
  private func setModelSpecificRegister(_ entry: kvm_msr_entry) {
    var request = OneRegister()
    request.entry = entry
    // SAFETY: the header states that one entry follows it.
    _ = unsafe nestling_ioctl(file.rawValue, KVM_SET_MSRS, &request)
  }
}
