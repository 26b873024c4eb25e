import CLinux

/// The state in which the first CPU starts, where it differs from the reset state.
public enum ProcessorEntry: Hashable, Sendable {
  /// 64-bit code with paging. Code and data segments are flat; their selectors refer to the descriptor table at
  /// `descriptorTableBase`.
  case longMode(
    instructionPointer: UInt64, rsi: UInt64, pageTableRoot: UInt64, descriptorTableBase: UInt64,
    descriptorTableLimit: UInt16, codeSelector: UInt16, dataSelector: UInt16)
  /// 32-bit code without paging; segments are flat.
  case protectedMode(instructionPointer: UInt32, eax: UInt32, ebx: UInt32)
}

extension VCPU {
  /// Sets the CPU's registers for the entry. The CPU must be in its reset state.
  public func enter(_ entry: ProcessorEntry, from reset: VCPUState) throws(KVMError) {
    var registers = kvm_regs()
    var system = reset.system
    registers.rflags = 2
    // A reset leaves CR0.CD and NW set (Intel SDM volume 3, table 10-1). Enable the caches as firmware would.
    system.cr0 &= ~(1 << 30 | 1 << 29)
    switch entry {
    case .longMode(let rip, let rsi, let root, let tableBase, let tableLimit, let code, let data):
      registers.rip = rip
      registers.rsi = rsi
      system.cs = Self.flatSegment(selector: code, type: 0xb, isLong: true)
      Self.setData(&system, Self.flatSegment(selector: data, type: 0x3))
      system.gdt.base = tableBase
      system.gdt.limit = tableLimit
      system.cr3 = root
      // CR0.PE and PG, CR4.PAE, EFER.LME and LMA.
      system.cr0 |= 1 | 1 << 31
      system.cr4 |= 1 << 5
      system.efer |= 1 << 8 | 1 << 10
    case .protectedMode(let eip, let eax, let ebx):
      registers.rip = UInt64(eip)
      registers.rax = UInt64(eax)
      registers.rbx = UInt64(ebx)
      system.cs = Self.flatSegment(selector: 0x8, type: 0xb)
      Self.setData(&system, Self.flatSegment(selector: 0x10, type: 0x3))
      system.cr0 |= 1
    }
    // Intel's VM entry requires a valid task register: a busy 32-bit TSS.
    system.tr.type = 0xb
    system.tr.present = 1
    try set(registers: registers, system: system)
  }

  private static func setData(_ system: inout kvm_sregs, _ segment: kvm_segment) {
    system.ds = segment
    system.es = segment
    system.fs = segment
    system.gs = segment
    system.ss = segment
  }

  /// - Parameter type: 0xb for execute/read, 0x3 for read/write, both with the accessed bit.
  private static func flatSegment(selector: UInt16, type: UInt8, isLong: Bool = false) -> kvm_segment {
    var segment = kvm_segment()
    segment.limit = 0xffff_ffff
    segment.selector = selector
    segment.type = type
    segment.present = 1
    segment.s = 1
    segment.g = 1
    segment.db = isLong ? 0 : 1
    segment.l = isLong ? 1 : 0
    return segment
  }
}
