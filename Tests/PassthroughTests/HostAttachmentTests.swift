import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import Testing
import VFIO
import VTdOracle

@testable import Passthrough
@testable import VTd

/// Checks the host's part of `info iommu` and `-d iommu`.
@Suite struct HostAttachmentTests {
  /// A unit with one device behind it, its first stage at 2 MiB, on the fake kernel.
  private struct Chain {
    let kernel = FakeKernel()
    let nesting: NestingGuest
    let bound: HostBoundDevice

    init() throws {
      let memory = try kernel.makeMemory(name: "iommufd0")
      nesting = try NestingGuest()
      bound = try HostBoundDevice(kernel.openDevice(0, for: memory), memory: memory, nests: true) { _ in }
      bindings.add(bound, for: Requester(id: NestingGuest.sources[0]))
    }

    var guest: Guest { nesting.guest }
    var bindings: HostBindings { nesting.bindings }

    var attachment: HostAttachment? { bindings.boundFunctions.first.map(HostAttachment.init) }
  }

  @Test("the reported kernel objects change with the guest's tables")
  func kernelObjectsFollowTheGuest() throws {
    let chain = try Chain()
    let objects = { chain.kernel.state.withLock { $0.objects } }
    func id(_ matches: (FakeKernel.Object) -> Bool) -> UInt32? { objects().first { matches($0.value) }?.key }
    let space = try #require(id { $0 == .addressSpace })
    let parent = try #require(id { if case .parent = $0 { true } else { false } })
    #expect(
      chain.attachment
        == HostAttachment(
          source: NestingGuest.sources[0], binding: .secondStage, target: .parent(parent, addressSpace: space),
          iommufd: "iommufd0"))

    chain.nesting.enableTranslation()
    let nested = try #require(id { if case .nested = $0 { true } else { false } })
    let stage = GuestFirstStage(root: 0x20_0000, levels: 4, domain: 5, pasid: 0)
    #expect(chain.attachment?.target == .nested(nested, parent: parent, addressSpace: space))
    #expect(chain.attachment?.binding == .firstStage(stage))

    chain.kernel.state.withLock { $0.failing[IOMMU_HWPT_ALLOC] = EINVAL }
    #expect(chain.nesting.setTable(0x30_0000))
    #expect(chain.attachment?.target == HostAttachment.Target.none)
    #expect(chain.attachment?.binding == .blocked(.refused))
    chain.bindings.remove(chain.bound)
    #expect(chain.bindings.boundFunctions.isEmpty)
  }

  /// A guest unmaps pages: each doorbell costs at most one kernel call.
  @Test(
    "invalidations cost one kernel call for each doorbell",
    arguments: [(pages: 1000, perDoorbell: 1), (1000, 16), (1000, 250), (400, 400), (1000, 1000)])
  func invalidationsCostACallForEachDoorbell(pages: Int, perDoorbell: Int) throws {
    let chain = try Chain()
    chain.nesting.enableTranslation()
    let before = chain.guest.unit.counters[.doorbells]
    for start in stride(from: 0, to: pages, by: perDoorbell) {
      for page in start..<min(start + perDoorbell, pages) {
        chain.guest.put([6 | 3 << 4 | 5 << 16, 0x10_0000_0000 + UInt64(page) << 12])
      }
      #expect(chain.guest.submitAndWait())
    }
    let doorbells = chain.guest.unit.counters[.doorbells] - before
    let calls = chain.kernel.state.withLock { $0.invalidations }
    #expect(doorbells == UInt64((pages + perDoorbell - 1) / perDoorbell))
    #expect(UInt64(calls.count) == doorbells && chain.bindings.counters.invalidationCalls == doorbells)
    // More than 512 invalidations are passed to the kernel as one that covers everything.
    #expect(calls.reduce(0) { $0 + $1.entries.count } == (perDoorbell > 512 ? 1 : pages))
    chain.bindings.remove(chain.bound)
  }
}
