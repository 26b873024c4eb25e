import Devices
import Glibc
import Hardware
import Linux
import Synchronization
import TestSupport
import Testing
import Vhost

@testable import Machine

/// Tests how the kernel's vhost gets translations from the unit and loses them.
@Suite struct VhostTranslationTests {
  /// A vhost device with misses that the test adds. Its descriptor is readable while one waits.
  private final class Kernel: VhostDevice {
    enum Call: Equatable {
      case features(UInt64)
      case start(UInt32, descriptors: UInt64)
      case connect(UInt32, tap: Int32?)
      case add(VhostNet.Mapping)
      case invalidate(UInt64, UInt64)
      case forget
    }

    private struct State {
      var calls: [Call] = []
      var misses: [VhostNet.Miss] = []
      /// Errors of the next calls of `connect`.
      var faults = 0
      var refusesInvalidations = false
    }

    private let state = Mutex(State())
    private let readable: EventDescriptor
    let knownFeatures: UInt64 = .max

    init() throws(SystemError) { readable = try EventDescriptor() }

    var descriptor: Int32 { readable.rawValue }
    var calls: [Call] { state.withLock { $0.calls } }
    func clear() { state.withLock { $0.calls = [] } }
    func fault(_ count: Int) { state.withLock { $0.faults = count } }
    func refuseInvalidations() { state.withLock { $0.refusesInvalidations = true } }
    func miss(_ address: UInt64, reads: Bool = false, writes: Bool = false) {
      send([.init(address: address, reads: reads, writes: writes)])
    }
    /// Sends misses, so that the queue has all of them at once.
    func send(_ misses: [VhostNet.Miss]) {
      state.withLock { state in
        state.misses += misses
        readable.signal()
      }
    }

    func setFeatures(_ features: UInt64) throws(SystemError) { state.withLock { $0.calls.append(.features(features)) } }
    func start(_ ring: VhostNet.Ring) throws(SystemError) {
      state.withLock { $0.calls.append(.start(ring.number, descriptors: ring.descriptors)) }
    }
    func connect(_ ring: UInt32, to tap: Int32?) throws(SystemError) {
      let fails = state.withLock { state in
        state.calls.append(.connect(ring, tap: tap))
        guard tap != nil, state.faults > 0 else { return false }
        state.faults -= 1
        return true
      }
      if fails { throw SystemError("VHOST_NET_SET_BACKEND", code: EFAULT) }
    }
    func setCall(_ call: Int32?, of ring: UInt32) throws(SystemError) {}
    func stop(_ ring: UInt32) throws(SystemError) -> UInt16 { 0 }

    func takeMiss() throws(SystemError) -> VhostNet.Miss? {
      state.withLock { state in
        if state.misses.isEmpty { return nil }
        // Like the kernel's file, which is not readable while the queue is empty.
        if state.misses.count == 1 { readable.take() }
        return state.misses.removeFirst()
      }
    }
    func add(_ mapping: VhostNet.Mapping) throws(SystemError) { state.withLock { $0.calls.append(.add(mapping)) } }
    func forgetMisses() throws(SystemError) { state.withLock { $0.calls.append(.forget) } }
    func invalidate(_ address: UInt64, size: UInt64) throws(SystemError) {
      let refuses = state.withLock { state in
        state.calls.append(.invalidate(address, size))
        return state.refusesInvalidations
      }
      if refuses { throw SystemError("write", "vhost-net", code: EIO) }
    }
  }

  /// A unit that maps addresses from `base` on to physical addresses from zero on, in one large mapping or in pages.
  private final class Port: RemoteDMAPort {
    static let base: UInt64 = 0x7_0000_0000
    let inFlight = RequestsInFlight()
    let asked = Notes<DMAAccess>()
    let faults = SharedInteger()
    let unclaimed = SharedInteger()
    let answer = Mutex<DMAError?>(nil)
    let usesPages = Atomic(false)
    /// The only address that the unit refuses.
    private let refused = Mutex<UInt64?>(nil)
    func refuse(_ address: UInt64) {
      answer.withLock { $0 = nil }
      refused.withLock { $0 = address }
    }

    var isConnected: Bool { true }
    func translate(
      _ address: UInt64, for access: DMAAccess, recordsFault: Bool, _ install: (RemoteMapping) -> Void
    ) throws(DMAError) {
      asked.add(access)
      if let error = answer.withLock({ $0 }) ?? (refused.withLock { $0 } == address ? .translation : nil) {
        if recordsFault { faults.increment() }
        throw error
      }
      let page = DMARange(first: address & ~0xfff, last: address | 0xfff)
      let range = usesPages.load(ordering: .relaxed) ? page : DMARange(first: Self.base, last: Self.base + 0xffff_ffff)
      install(
        RemoteMapping(
          range: range, physicalAddress: range.first - Self.base, isReadable: true,
          isWritable: access.contains(.write)))
    }
    func complete(_ number: UInt64) {}
    func forgetAll() {}
    func noteUnclaimed() { unclaimed.increment() }
    func disconnect() {}
  }

  /// The doorbell of a queue.
  private final class Doorbell: Sendable {
    let event: EventDescriptor
    init() throws(SystemError) { event = try EventDescriptor() }
  }

  private let kernel: Kernel
  private let port = Port()
  private let remote = Notes<any RemoteIOTLB>()
  private let memory: GuestMemory
  private let loop: EventLoop
  private let failures = SharedInteger()
  private let doorbell: Doorbell
  private let datapath: VhostDatapath

  init() throws {
    kernel = try Kernel()
    doorbell = try Doorbell()
    memory = try GuestMemory(size: 4 << 20, lowLimit: 4 << 20)
    loop = try EventLoop(name: "vhost test")
    datapath = try VhostDatapath([kernel], taps: [70], memory: memory, loop: loop) { _ in }
  }

  private func start(_ index: Int = 0, hasUnit: Bool = true, used: UInt64 = Port.base + 0x3_0000) throws {
    let base = hasUnit ? Port.base : 0
    let (port, remote, failures) = (port, remote, failures)
    try datapath.start(
      DatapathQueue(
        index: index, features: [.version1, .accessPlatform],
        layout: .init(
          size: 256, descriptorArea: base + 0x1_0000, driverArea: base + 0x2_0000,
          deviceArea: hasUnit ? used : 0x3_0000),
        usesTranslation: true, startIndex: 0, kick: Notifier(descriptor: doorbell.event.rawValue, owner: doorbell),
        call: nil,
        connect: { cache in
          remote.add(cache)
          return hasUnit ? port : nil
        }, fail: { failures.increment() }))
  }

  /// The whole mapping, as far as it is RAM.
  private func mapping(isWritable: Bool) -> VhostNet.Mapping {
    VhostNet.Mapping(
      address: Port.base, size: 4 << 20, hostAddress: memory.hostAddress(of: memory.regions[0]), isReadable: true,
      isWritable: isWritable)
  }

  @Test func `a ring with translation starts with its DMA addresses, after the kernel has its used ring's translation`()
    throws
  {
    try start()
    let features: UInt64 = 1 << 32 | 1 << 33
    let descriptors = Port.base + 0x1_0000
    let size: UInt64 = 4 << 20
    #expect(
      kernel.calls == [
        .features(features), .start(0, descriptors: descriptors), .invalidate(Port.base, size),
        .add(mapping(isWritable: true)), .connect(0, tap: 70),
      ])
    #expect(port.asked.all == [[.read, .write]])
    try start(1)
    #expect(remote.all.count == 1, "one cache for both rings")
  }

  @Test func `without a unit, the addresses are guest physical`() throws {
    try start(hasUnit: false)
    let host = memory.hostAddress(of: memory.regions[0]) + 0x1_0000
    #expect(kernel.calls == [.features(1 << 32), .start(0, descriptors: host), .connect(0, tap: 70)])
  }

  @Test func `a used ring that the guest has not mapped costs the device a reset`() throws {
    port.answer.withLock { $0 = .translation }
    #expect(throws: DatapathRefusal.failed) { try start() }
    #expect(!kernel.calls.contains(.connect(0, tap: 70)))
  }

  @Test func `a translation that the guest takes back before the start is sent again`() throws {
    kernel.fault(2)
    try start()
    #expect(kernel.calls.filter { $0 == .connect(0, tap: 70) }.count == 3)
    #expect(kernel.calls.filter { $0 == .add(mapping(isWritable: true)) }.count == 3)
    kernel.fault(100)
    #expect(throws: DatapathRefusal.failed) { try start(1) }
  }

  @Test func `a miss is answered with all of the mapping that is RAM`() throws {
    try start()
    kernel.clear()
    kernel.miss(Port.base + 0x12_3456, reads: true)
    #expect(eventually { kernel.calls == [.add(mapping(isWritable: false))] })
    kernel.clear()
    // The kernel may hold the pages without the right to write.
    kernel.miss(Port.base + 0x12_3456, writes: true)
    #expect(eventually { kernel.calls == [.invalidate(Port.base, 4 << 20), .add(mapping(isWritable: true))] })
    #expect(port.asked.all[1...2] == [.read, .write])
    #expect(failures.value == 0)
  }

  /// Makes receive buffers available that begin in these pages.
  private func offer(_ pages: [UInt64]) {
    for (index, page) in pages.enumerated() {
      let descriptor = 0x1_0000 + 16 * UInt64(index)
      _ = memory.storeUInt64(Port.base + page, at: descriptor)
      // 1500 bytes that the device writes.
      _ = memory.storeUInt64(1500 | 2 << 32, at: descriptor + 8)
      _ = memory.storeUInt16(UInt16(index), at: 0x2_0004 + 2 * UInt64(index))
    }
    _ = memory.storeUInt16(UInt16(pages.count), at: 0x2_0002)
  }

  private var added: [UInt64] {
    kernel.calls.compactMap { if case .add(let mapping) = $0 { mapping.address - Port.base } else { nil } }
  }

  @Test func `the translations of the next buffers follow the answer to a miss`() throws {
    port.usesPages.store(true, ordering: .relaxed)
    try start()
    offer([0xa000, 0xb000, 0xcc00, 0x10_0000])
    // The driver has not mapped the last buffer.
    port.refuse(Port.base + 0x10_0000)
    kernel.clear()
    kernel.miss(Port.base + 0xa000, writes: true)
    // The buffer before it has bytes in two pages.
    #expect(eventually { added == [0xa000, 0xb000, 0xc000, 0xd000] })
    // The kernel may hold each page without the right to write.
    #expect(kernel.calls.first == .invalidate(Port.base + 0xa000, 0x1000))
    #expect(kernel.calls.count == 8)
    #expect(port.faults.value == 0 && failures.value == 0)

    // They are given once, until the kernel loses them.
    kernel.clear()
    kernel.miss(Port.base + 0xa000, writes: true)
    kernel.miss(Port.base + 0xe000, writes: true)
    #expect(eventually { added == [0xa000, 0xe000] })
    let cache = try #require(remote.all.first)
    #expect(cache.invalidate([.all], number: 1) == .done)
    // A loss concerns both rings, which here are the same one.
    try start(1)
    for writes in [false, true] {
      kernel.clear()
      kernel.miss(Port.base + 0xa000, reads: !writes, writes: writes)
      #expect(eventually { added == [0xa000, 0xb000, 0xc000, 0xd000] })
    }
  }

  @Test func `nothing is looked ahead for in a ring that has stopped`() throws {
    port.usesPages.store(true, ordering: .relaxed)
    try start()
    offer([0xa000, 0xb000])
    _ = datapath.stop(queue: 0) { _ in }
    kernel.clear()
    kernel.miss(Port.base + 0xa000, writes: true)
    kernel.miss(Port.base + 0xf000, writes: true)
    #expect(eventually { added == [0xa000, 0xf000] })
  }

  /// Sends misses that the unit refuses, or that are not RAM, until the rings are kicked.
  private func refuse(_ addresses: UInt64...) {
    kernel.send(addresses.map { VhostNet.Miss(address: $0, reads: true, writes: false) })
    #expect(eventually { doorbell.event.take() })
  }

  @Test func `a miss that is refused again after a kick of its ring costs the device a reset`() throws {
    try start()
    kernel.clear()
    refuse(Port.base + 0x80_0000)
    kernel.miss(Port.base + 0x80_0000, reads: true)
    #expect(eventually { failures.value == 1 && port.unclaimed.value == 1 })
    #expect(eventually { doorbell.event.take() }, "the queue of misses is emptied")
    port.answer.withLock { $0 = .translation }
    refuse(0x1000)
    #expect(port.faults.value == 0)
    kernel.miss(0x1000, writes: true)
    #expect(eventually { failures.value == 2 && port.faults.value == 1 })
    #expect(eventually { kernel.calls == [.connect(0, tap: nil), .forget, .forget] }, "packets stop")
  }

  @Test func `the ring is kicked for refused misses, even if a burst of answers ends with the last one`() throws {
    try start()
    port.answer.withLock { $0 = .translation }
    // As many as `VhostTranslation.burst`.
    kernel.send([VhostNet.Miss](repeating: .init(address: 0x1000, reads: true, writes: false), count: 64))
    #expect(eventually { doorbell.event.take() })
  }

  @Test func `a pause ends, even if a burst ends with the last miss`() throws {
    try start()
    port.refuse(0x1000)
    kernel.clear()
    // As many as the kernel may keep, which is four bursts.
    kernel.send([VhostNet.Miss](repeating: .init(address: 0x1000, reads: true, writes: false), count: 256))
    #expect(eventually { doorbell.event.take() })
    #expect(kernel.calls.prefix(2) == [.connect(0, tap: nil), .forget])
    #expect(kernel.calls.last == .connect(0, tap: 70))
  }

  @Test func `misses of pages that the driver has taken back since are without a consequence`() throws {
    try start()
    kernel.clear()
    let address = Port.base + 0x12_3000
    for _ in 0..<3 {
      // The ring asks several times. The first answer lets it continue, and the driver unmaps the page.
      port.answer.withLock { $0 = nil }
      kernel.miss(address, reads: true)
      #expect(eventually { kernel.calls == [.add(mapping(isWritable: false))] })
      port.answer.withLock { $0 = .translation }
      refuse(address, address, address + 0x1000)
      kernel.clear()
    }
    #expect(failures.value == 0 && port.faults.value == 0)
  }

  @Test func `a refused miss of before a reset is forgotten`() throws {
    try start()
    port.answer.withLock { $0 = .translation }
    refuse(0x1000)
    port.answer.withLock { $0 = nil }
    _ = datapath.stop(queue: 0) { _ in }
    try start()
    port.answer.withLock { $0 = .translation }
    refuse(0x1000)
    #expect(failures.value == 0 && port.faults.value == 0)
  }

  @Test func `more refused misses than are remembered still cost the device a reset in the end`() throws {
    try start()
    port.answer.withLock { $0 = .translation }
    kernel.send((0..<100).map { VhostNet.Miss(address: $0 << 12, reads: true, writes: false) })
    #expect(eventually { doorbell.event.take() })
    kernel.miss(99 << 12, reads: true)
    #expect(eventually { failures.value == 1 && port.faults.value == 1 })
  }

  @Test func `a miss at the end of the address space costs the device a reset at once`() throws {
    try start()
    kernel.miss(.max - 0xfff, reads: true)
    #expect(eventually { failures.value == 1 })
  }

  @Test func `the kernel frees refused misses after some hundreds, while no packet moves`() throws {
    try start()
    kernel.clear()
    port.answer.withLock { $0 = .translation }
    for number in 0..<255 { refuse(UInt64(number) << 12) }
    #expect(kernel.calls == [])
    port.refuse(255 << 12)
    kernel.miss(255 << 12, reads: true)
    #expect(eventually { doorbell.event.take() })
    #expect(kernel.calls.prefix(2) == [.connect(0, tap: nil), .forget])
    #expect(kernel.calls.last == .connect(0, tap: 70))
    #expect(failures.value == 0 && port.faults.value == 0)
  }

  @Test func `while Bus Master Enable is clear, a miss has no consequence`() throws {
    try start()
    kernel.clear()
    port.answer.withLock { $0 = .disabled }
    kernel.miss(Port.base, reads: true)
    #expect(eventually { port.asked.all.count == 2 })
    loop.perform {}
    #expect(kernel.calls == [] && failures.value == 0)
  }

  @Test func `an invalidation reaches the kernel before the unit's call returns`() throws {
    try start()
    kernel.clear()
    let cache = try #require(remote.all.first)
    let ranges = [DMARange(first: 0x1000, last: 0x2fff), .all, DMARange(first: .max - 0xfff, last: .max)]
    #expect(cache.invalidate(ranges, number: 1) == .done)
    #expect(
      kernel.calls == [
        .invalidate(0x1000, 0x2000), .invalidate(0, .max), .invalidate(.max - 0xfff, 0x1000),
      ])
  }

  @Test func `a kernel that keeps a translation loses the device's tap at once`() throws {
    try start()
    try start(1)
    kernel.clear()
    kernel.refuseInvalidations()
    let cache = try #require(remote.all.first)
    #expect(cache.invalidate([.all], number: 1) == .done)
    #expect(kernel.calls == [.invalidate(0, .max), .connect(0, tap: nil), .connect(1, tap: nil)])
    #expect(eventually { failures.value == 2 })
  }
}
