import CLinux
import Testing

@testable import KVM

/// Tests that the CPUID entries follow from the entries that the host supports.
@Suite struct ProcessorIdentificationTests {
  private static func entry(
    _ function: UInt32, _ index: UInt32 = 0, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0
  ) -> kvm_cpuid_entry2 {
    var entry = kvm_cpuid_entry2()
    entry.function = function
    entry.index = index
    entry.eax = eax
    entry.ebx = ebx
    entry.ecx = ecx
    entry.edx = edx
    return entry
  }

  /// An Intel and an AMD processor in one. Fields that must be replaced have the host's own values.
  private static let host = [
    entry(0, eax: 0x1f, ebx: 0x756e_6547),
    entry(1, eax: 0x0006_06a6, ebx: 0x7f10_0800, ecx: 0x0000_0201, edx: 0x1f8b_fbff),
    entry(4, 0, eax: 0xfc00_4121, ebx: 0x01c0_003f),
    entry(4, 1, eax: 0xfc00_4122),
    entry(4, 2, eax: 0xfc00_4143),
    entry(4, 3, eax: 0xfc0f_c163),
    entry(4, 4),
    entry(7, ebx: 0x1234),
    entry(0xb, 0, eax: 9, ebx: 99, ecx: 0x100, edx: 77),
    entry(0xb, 1, eax: 9, ebx: 99, ecx: 0x201, edx: 77),
    entry(0x1f, 0, eax: 9, ebx: 99, ecx: 0x100, edx: 77),
    entry(0x4000_0000, eax: 0x4000_0001, ebx: 0x4b4d_564b),
    entry(0x4000_0001, eax: 0x0100_7efb),
    entry(0x8000_0008, eax: 0x3030, ebx: 0x11, ecx: 0x703f),
    entry(0x8000_001d, 0, eax: 0x0000_4121),
    entry(0x8000_001d, 3, eax: 0x001f_c163),
    entry(0x8000_001e, eax: 55, ebx: 0x0137, ecx: 0x0302),
  ]

  private func entries(_ count: Int, id: UInt32 = 0, deadline: Bool = true, host: [kvm_cpuid_entry2] = host)
    -> [kvm_cpuid_entry2]
  {
    ProcessorIdentification(supported: host, processorCount: count, offersDeadlineTimer: deadline).entries(for: id)
  }

  private func leaf(_ entries: [kvm_cpuid_entry2], _ function: UInt32, _ index: UInt32 = 0) -> kvm_cpuid_entry2? {
    entries.first { $0.function == function && $0.index == index }
  }

  @Test(
    "leaf 1 has the APIC ID, the processor count and the added feature bits", arguments: [1, 2, 3, 4, 255, 256, 288])
  func features(count: Int) throws {
    for id in [0, UInt32(count - 1)] {
      let leaf = try #require(self.leaf(entries(count, id: id), 1))
      #expect(leaf.ebx >> 24 == id & 0xff)
      #expect(leaf.ebx >> 16 & 0xff == UInt32(min(count, 255)))
      #expect(leaf.ebx & 0xffff == 0x0800)
      // The host's features, with HYPERVISOR, x2APIC and the TSC deadline timer.
      #expect(leaf.ecx == 0x0000_0201 | 1 << 31 | 1 << 21 | 1 << 24)
      #expect(leaf.edx == (count > 1 ? 0x1f8b_fbff : 0x0f8b_fbff))
      #expect(leaf.eax == 0x0006_06a6)
    }
  }

  @Test("the TSC deadline timer is offered only where KVM has it") func theDeadlineTimerOnlyWhereKVMHasIt() throws {
    let leaf = try #require(self.leaf(entries(2, deadline: false), 1))
    #expect(leaf.ecx >> 24 & 1 == 0)
  }

  @Test(
    "leaves 0xB and 0x1F describe one thread per core and all cores",
    arguments: [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (256, 8), (257, 9)] as [(Int, UInt32)])
  func topologyLevels(count: Int, bits: UInt32) throws {
    for id in [0, UInt32(count - 1)] {
      let all = entries(count, id: id)
      for function: UInt32 in [0xb, 0x1f] {
        let levels = all.filter { $0.function == function }
        #expect(levels.map(\.index) == [0, 1, 2])
        #expect(levels.map(\.eax) == [0, bits, 0])
        #expect(levels.map(\.ebx) == [1, UInt32(count), 0])
        // Thread, core, end; the low byte is the level's index.
        #expect(levels.map(\.ecx) == [0x100, 0x201, 0x002])
        #expect(levels.allSatisfy { $0.edx == id })
        #expect(levels.allSatisfy { $0.flags == UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX) })
      }
    }
  }

  @Test("a topology leaf exists only where the host has it") func topologyOnlyWhereTheHostHasTheLeaf() {
    var host = Self.host.filter { $0.function != 0x1f }
    #expect(!entries(2, host: host).contains { $0.function == 0x1f })
    #expect(entries(2, host: host).contains { $0.function == 0xb })
    host[0].eax = 0xa
    #expect(!entries(2, host: host).contains { $0.function == 0xb })
  }

  @Test(
    "caches of levels 1 and 2 are private, and level 3 is shared by all processors",
    arguments: [(1, 0), (2, 1), (3, 3), (4, 3), (64, 63), (100, 127)] as [(Int, UInt32)])
  func cacheSharing(count: Int, others: UInt32) throws {
    let all = entries(count)
    for index in 0..<4 as Range<UInt32> {
      let leaf = try #require(self.leaf(all, 4, index))
      // Bits 25:14: how many processors share the cache, minus one; 31:26: cores of the package, minus one, in six
      // bits.
      #expect(leaf.eax >> 14 & 0xfff == (index == 3 ? others : 0))
      #expect(leaf.eax >> 26 == min(others, 63))
      #expect(leaf.eax & 0x3fff == Self.host[2 + Int(index)].eax & 0x3fff)
    }
    #expect(leaf(all, 4, 0)?.ebx == 0x01c0_003f)
    #expect(leaf(all, 4, 4)?.eax == 0)
    #expect(leaf(all, 0x8000_001d, 0)?.eax == 0x0121)
    #expect(leaf(all, 0x8000_001d, 3)?.eax == 0xc163 & 0x3fff | others << 14)
  }

  @Test(
    "AMD's leaves state the processor count and one thread per core",
    arguments: [(1, 0x0000), (2, 0x1001), (3, 0x2002), (4, 0x2003), (8, 0x3007)] as [(Int, UInt32)])
  func coreCountOfAMD(count: Int, expected: UInt32) throws {
    let all = entries(count, id: UInt32(count - 1))
    let size = try #require(leaf(all, 0x8000_0008))
    #expect(size.ecx == expected)
    #expect(size.eax == 0x3030)
    let topology = try #require(leaf(all, 0x8000_001e))
    #expect(topology.eax == UInt32(count - 1))
    // One thread per core, one node.
    #expect(topology.ebx == UInt32(count - 1))
    #expect(topology.ecx == 0)
  }

  @Test("all other leaves are the host's") func theRestIsAsTheHostHasIt() {
    let all = entries(4)
    #expect(leaf(all, 0)?.ebx == 0x756e_6547)
    #expect(leaf(all, 7)?.ebx == 0x1234)
    #expect(leaf(all, 0x4000_0000)?.ebx == 0x4b4d_564b)
    #expect(leaf(all, 0x4000_0001)?.eax == 0x0100_7efb)
    let names = all.map { UInt64($0.function) << 32 | UInt64($0.index) }
    #expect(Set(names).count == names.count)
  }

  @Test("the address width comes from leaf 0x80000008, and is 36 without it") func physicalAddressWidth() {
    func width(_ host: [kvm_cpuid_entry2]) -> Int {
      ProcessorIdentification(supported: host, processorCount: 1, offersDeadlineTimer: true).physicalAddressWidth
    }
    #expect(width(Self.host) == 48)
    #expect(width([]) == 36)
  }

  @Test(arguments: [(0x003030, 48), (0x303034, 48), (0x343934, 52), (0x343030, 48), (0x2f3030, 47)] as [(UInt32, Int)])
  func `guest physical addresses are no wider than KVM can map`(eax: UInt32, width: Int) {
    let identification = ProcessorIdentification(
      supported: [Self.entry(0x8000_0008, eax: eax)], processorCount: 1, offersDeadlineTimer: true)
    #expect(identification.physicalAddressWidth == width)
  }

  @Test("a host without leaves gives no leaves") func aHostThatSaysNothing() { #expect(entries(1, host: []).isEmpty) }
}
