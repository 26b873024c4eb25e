import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import TestSupport
import Testing
import VFIO
import VTdOracle

@testable import Passthrough
@testable import VTd

/// Checks that PASIDs of the guest reach the kernel's iommufd: from the entries in the guest's memory and its
/// invalidations to the kernel's calls.
@Suite struct HostBoundPASIDTests {
  /// Two devices behind one IOMMU, and one behind another.
  private static func makeKernel() -> FakeKernel {
    FakeKernel(
      devices: [0, 0, 1].enumerated().map { number, iommu in
        var device = FakeKernel.Device(path: "/dev/vfio/devices/vfio\(number)", iommu: iommu)
        device.pasidWidth = 20
        return device
      })
  }

  /// A unit with devices that use the same tables. Requests without PASID use the entry of PASID 0.
  private final class Chain {
    let kernel: FakeKernel
    let nesting: NestingGuest
    let memory: PassthroughMemory
    private(set) var bounds: [HostBoundDevice] = []
    let notices = Notes<HostBoundDevice.Notice>()

    init(_ kernel: FakeKernel = makeKernel(), devices: Range<Int> = 0..<1, width: Int = 20) throws {
      self.kernel = kernel
      memory = try kernel.makeMemory()
      nesting = try NestingGuest(context: 1 << 3) { $0.pasidBits = 20 }
      nesting.enableTranslation()
      do {
        for number in devices { try add(number, width: width) }
      } catch {
        end()
        throw error
      }
    }

    func add(_ number: Int, width: Int = 20) throws {
      let bound = try HostBoundDevice(
        kernel.openDevice(number, for: memory), memory: memory, nests: true, pasidWidth: width
      ) { [notices] in notices.add($0) }
      nesting.bindings.add(bound, for: Requester(id: NestingGuest.sources[number % 2]))
      bounds.append(bound)
    }

    /// Ends the devices as their release does.
    func end() {
      for bound in bounds { nesting.bindings.remove(bound) }
      bounds = []
    }

    var guest: Guest { nesting.guest }

    /// Writes the entry of a PASID below 64; a root of 0 makes it not present.
    func write(_ pasid: UInt32, _ root: UInt64) {
      let entry = nesting.tables.entry + UInt64(pasid) * 64
      let words = root == 0 ? (0, 0, 0) : Guest.pasidEntry(type: 1, firstStage: root)
      guest.store(words.1, at: entry + 8)
      guest.store(words.2, at: entry + 16)
      guest.store(words.0, at: entry)
    }

    static func invalidation(_ pasid: UInt32) -> [UInt64] { [7 | 1 << 4 | 5 << 16 | UInt64(pasid) << 32, 0] }
    static func page(_ pasid: UInt32, _ address: UInt64) -> [UInt64] {
      [6 | 3 << 4 | 5 << 16 | UInt64(pasid) << 32, address]
    }

    /// Writes the entry of a PASID and invalidates it.
    func set(_ pasid: UInt32, _ root: UInt64) {
      write(pasid, root)
      #expect(guest.submitAndWait(Self.invalidation(pasid)))
    }

    func root(_ pasid: UInt32, of device: Int = 0) -> UInt64? {
      if case .nested(_, let root) = kernel.attached(device, pasid: pasid) { root } else { nil }
    }
  }

  /// Runs the body with a chain, ends the chain and checks that the kernel holds nothing of it.
  private func run(devices: Range<Int> = 0..<1, _ body: (Chain, FakeKernel) throws -> Void) throws {
    let kernel = Self.makeKernel()
    do {
      let chain = try Chain(kernel, devices: devices)
      defer { chain.end() }
      try body(chain, kernel)
    }
    #expect(kernel.complaints == [])
  }

  // MARK: A PASID's life

  @Test("an entry's changes attach, replace and detach its PASID, and free the tables that it leaves")
  func life() throws {
    try run { chain, kernel in
      let start = kernel.standing
      chain.set(7, 0x30_0000)
      chain.set(8, 0x40_0000)
      #expect(chain.root(7) == 0x30_0000 && chain.root(8) == 0x40_0000)
      #expect(kernel.nestedRoots == [0x20_0000, 0x30_0000, 0x40_0000])
      chain.set(7, 0x50_0000)
      #expect(chain.root(7) == 0x50_0000 && kernel.nestedRoots == [0x20_0000, 0x40_0000, 0x50_0000])
      // Pass-through: the guest's memory itself.
      chain.guest.store(4 << 6 | 2 << 2 | 1, at: chain.nesting.tables.entry + 7 * 64)
      #expect(chain.guest.submitAndWait(Chain.invalidation(7)))
      if case .parent = kernel.attached(0, pasid: 7) {} else { Issue.record("not on the second stage") }
      kernel.state.withLock { $0.steps = [] }
      chain.set(7, 0)
      chain.set(8, 0)
      #expect(kernel.pasids(of: 0) == [] && kernel.standing == start)
      let steps = kernel.state.withLock { $0.steps }
      guard steps.count == 3, case .destroy(.nested(_, 0x40_0000)) = steps[2] else {
        Issue.record("\(steps)")
        return
      }
      #expect(Array(steps[..<2]) == [.detachPASID(7, device: 0), .detachPASID(8, device: 0)])
      #expect(chain.notices.all == [] && chain.guest.takeFault() == nil)
    }
  }

  @Test("a context, global or mode change takes all PASIDs off and finds them again")
  func allAtOnce() throws {
    try run { chain, kernel in
      let pasids = Array(1...32 as ClosedRange<UInt32>)
      for pasid in pasids { chain.write(pasid, 0x30_0000 + UInt64(pasid) << 12) }
      #expect(chain.guest.submitAndWait([7 | 3 << 4, 0]))
      #expect(kernel.pasids(of: 0) == pasids && kernel.nestedRoots.count == 33)
      let context = chain.guest.load(chain.nesting.tables.context)
      chain.guest.store(0, at: chain.nesting.tables.context)
      #expect(chain.guest.submitAndWait([1 | 1 << 4, 0]))
      #expect(kernel.pasids(of: 0) == [] && kernel.attached(0) == nil && kernel.nestedRoots == [])
      chain.guest.store(context, at: chain.nesting.tables.context)
      #expect(chain.guest.submitAndWait([1 | 3 << 4 | UInt64(NestingGuest.sources[0].rawValue) << 32, 0]))
      #expect(kernel.pasids(of: 0) == pasids)
      chain.guest.unit.reset()
      #expect(kernel.pasids(of: 0) == [] && kernel.nestedRoots == [])
      if case .parent = kernel.attached(0) {} else { Issue.record("not on the second stage") }
      chain.nesting.enableTranslation()
      #expect(kernel.pasids(of: 0) == pasids)
    }
  }

  @Test("requests without PASID can be blocked and bound again while PASIDs are attached")
  func withoutPASID() throws {
    try run { chain, kernel in
      chain.set(7, 0x30_0000)
      chain.set(0, 0)
      #expect(kernel.attached(0) == nil && chain.root(7) == 0x30_0000)
      chain.set(7, 0x38_0000)
      #expect(chain.root(7) == 0x38_0000)
      chain.set(0, 0x40_0000)
      #expect(kernel.nestedRoots == [0x38_0000, 0x40_0000] && chain.notices.all == [])
    }
  }

  // MARK: Sharing

  @Test("devices behind one IOMMU share the table of a PASID, and a device without PASIDs shares their parent")
  func sharing() throws {
    try run(devices: 0..<2) { chain, kernel in
      chain.set(7, 0x30_0000)
      #expect(kernel.attached(0, pasid: 7) == kernel.attached(1, pasid: 7) && kernel.nestedRoots.count == 2)
      #expect(chain.guest.submitAndWait(Chain.page(7, 0x1000)))
      #expect(kernel.state.withLock { $0.invalidations.count } == 1)
      // Its IOMMU needs a parent and a table of its own.
      try chain.add(2)
      #expect(chain.root(7, of: 2) == 0x30_0000 && kernel.nestedRoots.count == 4 && chain.memory.parentCount == 2)
    }
    let kernel = Self.makeKernel()
    do {
      let chain = try Chain(kernel, width: 0)
      try chain.add(1)
      #expect(chain.memory.parentCount == 2, "PASIDs need a parent that allows them")
      #expect(chain.bounds.map(\.pasidWidth) == [0, 20])
      chain.set(7, 0x30_0000)
      #expect(kernel.pasids(of: 0) == [] && kernel.pasids(of: 1) == [7])
      chain.end()
      try chain.add(1)
      try chain.add(0, width: 0)
      #expect(chain.memory.parentCount == 1)
      chain.end()
    }
    #expect(kernel.complaints == [])
  }

  // MARK: Invalidations

  @Test(
    "an unmap of a thousand pages under one PASID of 32 costs at most one call for a doorbell and table",
    arguments: [1, 20, 250, 1000])
  func invalidations(perDoorbell: Int) throws {
    try run { chain, kernel in
      for pasid: UInt32 in 1...32 { chain.write(pasid, 0x30_0000 + UInt64(pasid) << 12) }
      #expect(chain.guest.submitAndWait([7 | 3 << 4, 0]))
      let before = chain.guest.unit.counters[.doorbells]
      for start in stride(from: 0, to: 1000, by: perDoorbell) {
        for page in start..<start + perDoorbell { chain.guest.put(Chain.page(17, UInt64(page) << 12)) }
        #expect(chain.guest.submitAndWait())
      }
      let doorbells = Int(chain.guest.unit.counters[.doorbells] - before)
      let calls = kernel.state.withLock { $0.invalidations }
      #expect(calls.count == doorbells && doorbells == 1000 / perDoorbell)
      let table = kernel.state.withLock { $0.devices[0].pasids[17] }
      #expect(calls.allSatisfy { $0.table == table }, "only the PASID's own table")
    }
  }

  // MARK: Failing calls

  private let faultReason: UInt8 = 0x5b

  @Test("a PASID whose table cannot be made or attached is blocked with a fault, and the others are not")
  func refusedBinding() throws {
    try run { chain, kernel in
      chain.set(6, 0x28_0000)
      func refuses(_ error: SystemError) {
        chain.set(7, 0x30_0000)
        let fault = chain.guest.takeFault()
        #expect(fault?.reason == faultReason && fault?.pasid == 7)
        #expect(kernel.pasids(of: 0) == [6] && kernel.nestedRoots == [0x20_0000, 0x28_0000])
        #expect(chain.notices.all.last == .pasidRefused(error))
      }
      kernel.state.withLock { $0.failing[IOMMU_HWPT_ALLOC] = ENOMEM }
      refuses(SystemError("IOMMU_HWPT_ALLOC", "/dev/iommu", code: ENOMEM))
      kernel.state.withLock { state in
        state.failing = [:]
        state.devices[0].failingPASIDs = [7: EBUSY]
      }
      let busy = SystemError("VFIO_DEVICE_ATTACH_IOMMUFD_PT", "/dev/vfio/devices/vfio0", code: EBUSY)
      refuses(busy)
      refuses(busy)
      #expect(chain.notices.all.count == 2, "each notice is sent once")
      // The next invalidation tries again.
      kernel.state.withLock { $0.devices[0].failingPASIDs = [:] }
      #expect(chain.guest.submitAndWait([7 | 3 << 4, 0]))
      #expect(chain.root(7) == 0x30_0000 && chain.root(6) == 0x28_0000)
    }
  }

  @Test("a PASID whose table cannot be replaced does not stay on its former table")
  func refusedReplacement() throws {
    try run { chain, kernel in
      chain.set(7, 0x30_0000)
      kernel.state.withLock { $0.devices[0].failingPASIDs = [7: EBUSY] }
      chain.set(7, 0x40_0000)
      #expect(kernel.pasids(of: 0) == [] && kernel.nestedRoots == [0x20_0000])
      #expect(chain.guest.takeFault()?.pasid == 7)
      kernel.state.withLock { $0.devices[0].failingPASIDs = [:] }
      #expect(chain.guest.submitAndWait(Chain.invalidation(7)))
      #expect(chain.root(7) == 0x40_0000)
    }
  }

  @Test("a PASID that cannot be detached keeps its table until it can, and its pages are still invalidated")
  func refusedDetachment() throws {
    try run { chain, kernel in
      chain.set(7, 0x30_0000)
      kernel.state.withLock { $0.failingDevices[0] = [VFIO_DEVICE_DETACH_IOMMUFD_PT: EIO] }
      chain.set(7, 0)
      #expect(chain.root(7) == 0x30_0000 && kernel.nestedRoots == [0x20_0000, 0x30_0000])
      #expect(chain.guest.takeFault()?.pasid == 7)
      let refusal = SystemError("VFIO_DEVICE_DETACH_IOMMUFD_PT", "/dev/vfio/devices/vfio0", code: EIO)
      #expect(chain.notices.all == [.pasidRefused(refusal)])
      #expect(chain.guest.submitAndWait(Chain.page(7, 0x1000)))
      #expect(kernel.state.withLock { $0.invalidations.count } == 1)
      kernel.state.withLock { $0.failingDevices = [:] }
      #expect(chain.guest.submitAndWait(Chain.invalidation(7)))
      #expect(kernel.pasids(of: 0) == [] && kernel.nestedRoots == [0x20_0000])
    }
  }

  @Test("a failed invalidation of one PASID's table blocks that PASID on all devices, and nothing else")
  func refusedInvalidation() throws {
    try run(devices: 0..<2) { chain, kernel in
      chain.set(6, 0x28_0000)
      chain.set(7, 0x30_0000)
      let table = try #require(kernel.state.withLock { $0.devices[0].pasids[7] })
      kernel.state.withLock { $0.failingInvalidations = [table: EIO] }
      #expect(chain.guest.submitAndWait([2 | 1 << 4, 0]))
      #expect(kernel.pasids(of: 0) == [6] && kernel.pasids(of: 1) == [6])
      #expect(kernel.nestedRoots == [0x20_0000, 0x28_0000] && chain.guest.takeFault()?.pasid == 7)
      let refusal = SystemError("IOMMU_HWPT_INVALIDATE", "/dev/iommu", code: EIO)
      #expect(chain.notices.all == [.pasidRefused(refusal), .pasidRefused(refusal)], "one for each device")
      #expect(chain.guest.submitAndWait(Chain.invalidation(7)))
      #expect(chain.root(7) == 0x30_0000 && chain.root(7, of: 1) == 0x30_0000)
    }
  }

  @Test("PASIDs beyond the limit are reported once")
  func blocked() throws {
    try run { chain, kernel in
      for pasid: UInt64 in 8..<10 {
        chain.guest.store(5, at: chain.nesting.tables.entry + pasid * 64 + 8)
        chain.guest.store(2 << 6 | 2 << 2 | 1, at: chain.nesting.tables.entry + pasid * 64)
        #expect(chain.guest.submitAndWait(Chain.invalidation(UInt32(pasid))))
      }
      // This unit offers no second stage beside the first, so these entries are not valid.
      #expect(chain.notices.all == [] && kernel.pasids(of: 0) == [])
      // Each directory entry points to the same 63 entries.
      for pasid: UInt32 in 0..<64 { chain.write(pasid, 0x30_0000) }
      let directory = chain.nesting.tables.directory
      for index: UInt64 in 1..<16 { chain.guest.store(chain.guest.load(directory), at: directory + index * 8) }
      for _ in 0..<2 { #expect(chain.guest.submitAndWait([7 | 3 << 4, 0])) }
      #expect(kernel.pasids(of: 0).count == PASIDLimit.bound)
      #expect(chain.notices.all == [.pasidBlocked(.tooManyPASIDs)])
    }
  }

  // MARK: Older kernels

  @Test("a kernel that attaches no PASIDs is asked once, and everything else works as without PASIDs")
  func olderKernel() throws {
    let kernel = Self.makeKernel()
    kernel.state.withLock { $0.attachesPASIDs = false }
    do {
      let chain = try Chain(kernel, devices: 0..<2)
      #expect(chain.bounds.map(\.pasidWidth) == [0, 0])
      #expect(chain.bounds[0].pasidRefusal == SystemError("IOMMU_HWPT_ALLOC", "/dev/iommu", code: EOPNOTSUPP))
      #expect(chain.memory.parentCount == 1 && kernel.nestedRoots == [0x20_0000])
      chain.set(7, 0x30_0000)
      #expect(kernel.nestedRoots == [0x20_0000] && chain.guest.takeFault() == nil)
      #expect(throws: HostRefusal.self) { try chain.bounds[0].bind(7, to: .secondStage) }
      chain.set(0, 0x40_0000)
      #expect(kernel.nestedRoots == [0x40_0000])
      #expect(chain.notices.all == [])
      chain.end()
    }
    #expect(kernel.complaints == [])
  }

  @Test("a device whose trial attachment fails has no PASIDs, and works without")
  func failedTrial() throws {
    let kernel = Self.makeKernel()
    kernel.state.withLock { $0.devices[0].failingPASIDs = [1: EOPNOTSUPP] }
    do {
      let chain = try Chain(kernel)
      #expect(chain.bounds[0].pasidWidth == 0 && chain.bounds[0].pasidRefusal?.code == EOPNOTSUPP)
      chain.set(0, 0x40_0000)
      #expect(kernel.nestedRoots == [0x40_0000] && kernel.pasids(of: 0) == [])
      chain.end()
    }
    #expect(kernel.complaints == [])
  }

  @Test("a PASID that the device does not have, and PASID 0, are refused without a call")
  func width() throws {
    try run { chain, kernel in
      let bound = chain.bounds[0]
      kernel.state.withLock { $0.calls = [] }
      for pasid: UInt32 in [0, 1 << 20, .max] {
        #expect(throws: HostRefusal.self) { try bound.bind(pasid, to: .secondStage) }
      }
      #expect(kernel.state.withLock { $0.calls } == [])
    }
  }

  /// The kernel's own table, to which older kernels need the device attached before one with a fault queue, allows no
  /// PASIDs.
  @Test("page requests of requests without PASID go on while PASIDs are attached")
  func pageRequests() throws {
    try run { chain, kernel in
      let bound = chain.bounds[0]
      let requests = try #require(try bound.offerPageRequests())
      chain.nesting.bindings.renew(bound)
      chain.set(7, 0x30_0000)
      chain.set(0, 0)
      #expect(kernel.attached(0) == nil)
      chain.set(0, 0x40_0000)
      let queue = kernel.state.withLock { state in state.devices[0].attachedTo.flatMap { state.queueOfTable[$0] } }
      #expect(queue != nil && chain.root(7) == 0x30_0000 && chain.notices.all == [])
      withExtendedLifetime(requests) {}
    }
  }

  // MARK: Everything together

  /// Takes two devices through several tables of PASIDs to their end.
  private func sequence(on kernel: FakeKernel) throws -> Bool {
    let chain = try Chain(kernel, devices: 0..<2)
    defer { chain.end() }
    for pasid: UInt32 in 1...3 { chain.set(pasid, 0x30_0000) }
    chain.set(2, 0x40_0000)
    #expect(chain.guest.submitAndWait(Chain.page(2, 0x1000), Chain.page(3, 0x1000)))
    chain.set(1, 0)
    chain.guest.command(clear: 31)
    return chain.bounds.allSatisfy { $0.pasidWidth == 20 }
  }

  /// In each round another kernel call of the sequence fails.
  @Test("a failure of any kernel call leaves nothing behind", arguments: [EIO, EINVAL, ENOMEM])
  func nothingLeaksWhicheverCallFails(_ code: Int32) throws {
    for calls in 0..<128 {
      let kernel = Self.makeKernel()
      kernel.state.withLock { state in
        state.callsBeforeFailure = calls
        state.failure = code
      }
      let isComplete = try? sequence(on: kernel)
      #expect(kernel.complaints == [], "call \(calls)")
      guard kernel.state.withLock({ $0.failed }) != nil else {
        #expect(isComplete == true && calls > 25)
        return
      }
    }
    Issue.record("the sequence did not end within 128 calls")
  }

  /// After each doorbell, the kernel has what the invalidated entries say. Meanwhile another device comes and goes, and
  /// a monitor looks.
  @Test("32 PASIDs bound and unbound at random follow the guest's tables")
  func random() throws {
    let kernel = Self.makeKernel()
    do {
      let chain = try Chain(kernel)
      let start = kernel.standing
      let stops = SharedInteger()
      let failures = Notes<String>()
      let bindings = chain.nesting.bindings
      let memory = chain.memory
      let hotplug = TestThread {
        while stops.value == 0 {
          guard let device = try? kernel.openDevice(1, for: memory),
            let bound = try? HostBoundDevice(
              device, memory: memory, nests: true, pasidWidth: 20, report: { failures.add("\($0)") })
          else { return failures.add("the device cannot be bound") }
          bindings.add(bound, for: Requester(id: NestingGuest.sources[1]))
          _ = bindings.boundFunctions.map(HostAttachment.init)
          bindings.remove(bound)
        }
      }
      var random = SeededGenerator(seed: 0x5eed)
      var current: [UInt32: UInt64] = [:]
      for _ in 0..<1500 {
        let changed = (0..<Int.random(in: 1...4, using: &random)).map { _ in UInt32.random(in: 1...32, using: &random) }
        for pasid in changed {
          let root = Bool.random(using: &random) ? 0 : UInt64.random(in: 0x300...0x303, using: &random) << 12
          chain.write(pasid, root)
          current[pasid] = root == 0 ? nil : root
        }
        if Bool.random(using: &random) {
          #expect(chain.guest.submitAndWait([7 | 3 << 4, 0]))
        } else {
          for pasid in changed { chain.guest.put(Chain.invalidation(pasid)) }
          #expect(chain.guest.submitAndWait(Chain.page(changed[0], 0x1000)))
        }
        let attached = kernel.state.withLock { state in
          state.devices[0].pasids.mapValues { id -> UInt64 in
            if case .nested(_, let root) = state.objects[id] { root } else { 0 }
          }
        }
        guard attached == current else {
          Issue.record("\(attached) instead of \(current)")
          break
        }
      }
      stops.value = 1
      hotplug.join()
      #expect(failures.all == [])
      for pasid: UInt32 in 1...32 { chain.set(pasid, 0) }
      #expect(kernel.standing == start && chain.notices.all == [])
      chain.end()
    }
    #expect(kernel.complaints == [])
  }
}
