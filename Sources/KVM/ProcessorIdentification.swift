import CLinux

/// The CPUID entries of a vCPU: those that the host supports, completed by the fields that KVM leaves to user space
/// (Intel SDM volume 2, "CPUID"; AMD APM volume 3, appendix E).
public struct ProcessorIdentification: Sendable {
  private let supported: [kvm_cpuid_entry2]
  private let processorCount: Int
  private let offersDeadlineTimer: Bool

  /// - Parameter processorCount: all are in one package, with one thread per core.
  public init(system: KVMSystem, processorCount: Int) throws(KVMError) {
    self.init(
      supported: try system.supportedProcessorIdentification(), processorCount: processorCount,
      offersDeadlineTimer: system.offersDeadlineTimer)
  }

  init(supported: [kvm_cpuid_entry2], processorCount: Int, offersDeadlineTimer: Bool) {
    self.supported = supported
    self.processorCount = processorCount
    self.offersDeadlineTimer = offersDeadlineTimer
  }

  /// Width in bits of guest physical addresses: leaf 0x8000_0008, EAX bits 7:0; 36 if the host has no such leaf. If KVM
  /// cannot map all addresses of the processor (4-level EPT or NPT below 52 bits), EAX bits 23:16 have the smaller
  /// width; otherwise they are 0.
  public var physicalAddressWidth: Int {
    guard let leaf = supported.first(where: { $0.function == 0x8000_0008 }) else { return 36 }
    let processorWidth = Int(leaf.eax & 0xff)
    let mappableWidth = Int(leaf.eax >> 16 & 0xff)
    return mappableWidth == 0 ? processorWidth : min(processorWidth, mappableWidth)
  }

  /// The number of APIC ID bits that distinguish the processors of a package.
  private var processorBits: UInt32 {
    UInt32(Int.bitWidth - (processorCount - 1).leadingZeroBitCount)
  }

  /// Returns the CPUID entries of the vCPU with this APIC ID.
  public func entries(for id: UInt32) -> [kvm_cpuid_entry2] {
    var entries: [kvm_cpuid_entry2] = []
    for var entry in supported {
      switch entry.function {
      case 0x1: patchFeatures(&entry, id)
      case 0x4: patchCacheSharing(&entry, coresShift: 26)
      // `topology` replaces these below.
      case 0xb, 0x1f: continue
      case 0x8000_0008:
        // ECX: NC, the number of processors minus one, and ApicIdCoreIdSize.
        entry.ecx = UInt32(processorCount - 1) & 0xff | processorBits << 12
      case 0x8000_001d: patchCacheSharing(&entry, coresShift: nil)
      case 0x8000_001e:
        entry.eax = id
        entry.ebx = id & 0xff
        entry.ecx = 0
      default: break
      }
      entries.append(entry)
    }
    if supported.contains(where: { $0.function == 0 && $0.eax >= 0xb }) {
      entries += topology(leaf: 0xb, id)
      if supported.contains(where: { $0.function == 0x1f }) { entries += topology(leaf: 0x1f, id) }
    }
    return entries
  }

  private func patchFeatures(_ entry: inout kvm_cpuid_entry2, _ id: UInt32) {
    entry.ebx = entry.ebx & 0xffff | UInt32(min(processorCount, 255)) << 16 | (id & 0xff) << 24
    entry.ecx |= 1 << 31  // HYPERVISOR
    entry.ecx |= 1 << 21  // x2APIC, which KVM's local APIC always supports
    if offersDeadlineTimer { entry.ecx |= 1 << 24 }
    let hyperThreading: UInt32 = 1 << 28
    entry.edx = processorCount > 1 ? entry.edx | hyperThreading : entry.edx & ~hyperThreading
  }

  /// Sets the number of processors that share a cache: one for levels 1 and 2, all for level 3.
  private func patchCacheSharing(_ entry: inout kvm_cpuid_entry2, coresShift: UInt32?) {
    guard entry.eax & 0x1f != 0 else { return }
    let level = entry.eax >> 5 & 7
    let sharing: UInt32 = level >= 3 ? (1 << processorBits) - 1 : 0
    entry.eax = entry.eax & ~(0xfff << 14) | (sharing & 0xfff) << 14
    if let coresShift {
      entry.eax = entry.eax & ~(0x3f << coresShift) | min((1 << processorBits) - 1, 0x3f) << coresShift
    }
  }

  /// Returns leaf 0xB or 0x1F: a thread level with one thread, a core level with all processors, and the end of the
  /// list.
  private func topology(leaf: UInt32, _ id: UInt32) -> [kvm_cpuid_entry2] {
    let levels: [(shift: UInt32, count: UInt32, type: UInt32)] = [
      (0, 1, 1), (processorBits, UInt32(processorCount), 2), (0, 0, 0),
    ]
    return levels.enumerated().map { index, level in
      var entry = kvm_cpuid_entry2()
      entry.function = leaf
      entry.index = UInt32(index)
      entry.flags = UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
      entry.eax = level.shift
      entry.ebx = level.count
      entry.ecx = UInt32(index) | level.type << 8
      entry.edx = id
      return entry
    }
  }
}
