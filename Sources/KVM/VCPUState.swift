import CLinux
import Linux

/// The architectural state of a vCPU that a reset must restore. It is read once, right after the vCPU's construction.
///
/// A class: a struct of this size needs 28 KiB of code to copy its fields.
public final class VCPUState: Sendable {
  let registers: kvm_regs
  let system: kvm_sregs
  let floatingPoint: kvm_fpu
  let localAPIC: kvm_lapic_state
  let processing: kvm_mp_state
  let events: kvm_vcpu_events
  let debug: kvm_debugregs
  /// Nil without XSAVE.
  let extendedControl: kvm_xcrs?
  let modelSpecific: [kvm_msr_entry]

  fileprivate init(of vcpu: VCPU) throws(KVMError) {
    registers = try vcpu.get(kvm_regs(), KVM_GET_REGS, "KVM_GET_REGS")
    system = try vcpu.get(kvm_sregs(), KVM_GET_SREGS, "KVM_GET_SREGS")
    floatingPoint = try vcpu.get(kvm_fpu(), KVM_GET_FPU, "KVM_GET_FPU")
    localAPIC = try vcpu.get(kvm_lapic_state(), KVM_GET_LAPIC, "KVM_GET_LAPIC")
    processing = try vcpu.get(kvm_mp_state(), KVM_GET_MP_STATE, "KVM_GET_MP_STATE")
    events = try vcpu.get(kvm_vcpu_events(), KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS")
    debug = try vcpu.get(kvm_debugregs(), KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS")
    extendedControl = try vcpu.hasExtendedControl ? vcpu.get(kvm_xcrs(), KVM_GET_XCRS, "KVM_GET_XCRS") : nil
    modelSpecific = try vcpu.stateRegisterIndices().filter { !VCPU.runningCounters.contains($0) }
      .compactMap(vcpu.modelSpecificRegister)
  }
}

extension VCPU {
  private func call(_ request: UInt32, _ argument: UnsafeMutableRawPointer, _ name: String) throws(KVMError) {
    // SAFETY: each caller passes the structure whose size the request number encodes.
    try VirtualMachine.check(unsafe nestling_ioctl(file.rawValue, request, argument), name)
  }

  fileprivate func get<Structure: BitwiseCopyable>(
    _ structure: Structure, _ request: UInt32, _ name: String
  ) throws(KVMError) -> Structure {
    var structure = structure
    try unsafe call(request, &structure, name)
    return structure
  }

  private func set<Structure: BitwiseCopyable>(
    _ structure: Structure, _ request: UInt32, _ name: String
  ) throws(KVMError) {
    var structure = structure
    try unsafe call(request, &structure, name)
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
    try get(kvm_regs(), KVM_GET_REGS, "KVM_GET_REGS").rip
  }

  public func readState() throws(KVMError) -> VCPUState { try VCPUState(of: self) }

  /// Restores a state that `readState` returned.
  public func restore(_ state: VCPUState) throws(KVMError) {
    abandonAccess()
    try set(state.processing, KVM_SET_MP_STATE, "KVM_SET_MP_STATE")
    if let extendedControl = state.extendedControl { try set(extendedControl, KVM_SET_XCRS, "KVM_SET_XCRS") }
    try set(registers: state.registers, system: state.system)
    try set(state.floatingPoint, KVM_SET_FPU, "KVM_SET_FPU")
    for entry in state.modelSpecific { setModelSpecificRegister(entry) }
    try set(state.localAPIC, KVM_SET_LAPIC, "KVM_SET_LAPIC")
    try set(state.events, KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS")
    try set(state.debug, KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS")
  }

  func set(registers: kvm_regs, system: kvm_sregs) throws(KVMError) {
    try set(system, KVM_SET_SREGS, "KVM_SET_SREGS")
    try set(registers, KVM_SET_REGS, "KVM_SET_REGS")
  }

  /// MSRs that a reset does not restore. Time continues across a reset: IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST,
  /// IA32_TSC_DEADLINE. KVM_SET_SREGS sets the APIC base.
  fileprivate static let runningCounters: Set<UInt32> = [0x10, 0x3b, 0x6e0, 0x1b]

  private struct OneRegister {
    var header = kvm_msrs(nmsrs: 1, pad: 0)
    var entry = kvm_msr_entry()
  }

  /// Returns nil if this vCPU does not have the register.
  fileprivate func modelSpecificRegister(_ index: UInt32) -> kvm_msr_entry? {
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
