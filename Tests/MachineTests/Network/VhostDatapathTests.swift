import Devices
import Glibc
import Hardware
import Linux
import Synchronization
import TestSupport
import Testing
import Vhost

@testable import Machine

/// Tests the calls of the kernel's vhost by which queues start, stop and change, and the failures that cost the device
/// a reset. `VhostKernelTests` tests the kernel's part.
@Suite struct VhostDatapathTests {
  /// A vhost device that records its calls and refuses what the test asks it to.
  private final class Kernel: VhostDevice {
    enum Call: Equatable {
      case features(UInt64)
      case start(UInt32, at: UInt16)
      case connect(UInt32, tap: Int32?)
      case setCall(UInt32, Int32?)
      case stop(UInt32)
    }

    private struct State {
      var calls: [Call] = []
      var ring: VhostNet.Ring?
      var refusal: Int32?
    }

    private let state = Mutex(State())
    let knownFeatures: UInt64
    let descriptor: Int32 = -1

    /// - Parameter features: indirect descriptors, event index, version 1, mergeable buffers.
    init(_ features: UInt64 = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 15) { knownFeatures = features }

    var calls: [Call] { state.withLock { $0.calls } }
    var ring: VhostNet.Ring? { state.withLock { $0.ring } }
    func clear() { state.withLock { $0.calls = [] } }
    func refuse(_ code: Int32?) { state.withLock { $0.refusal = code } }

    private func note(_ call: Call) throws(SystemError) {
      let refusal = state.withLock { state in
        state.calls.append(call)
        return state.refusal
      }
      if let refusal { throw SystemError("vhost", code: refusal) }
    }

    func setFeatures(_ features: UInt64) throws(SystemError) { try note(.features(features)) }

    func start(_ ring: VhostNet.Ring) throws(SystemError) {
      state.withLock { $0.ring = ring }
      try note(.start(ring.number, at: ring.start))
    }

    func connect(_ ring: UInt32, to tap: Int32?) throws(SystemError) { try note(.connect(ring, tap: tap)) }
    func setCall(_ call: Int32?, of ring: UInt32) throws(SystemError) { try note(.setCall(ring, call)) }

    func stop(_ ring: UInt32) throws(SystemError) -> UInt16 {
      try note(.stop(ring))
      return 17
    }

    func takeMiss() throws(SystemError) -> VhostNet.Miss? { nil }
    func add(_ mapping: VhostNet.Mapping) throws(SystemError) {}
    func invalidate(_ address: UInt64, size: UInt64) throws(SystemError) {}
    func forgetMisses() throws(SystemError) {}
  }

  private final class Owner: Sendable {}

  private let kernels = [Kernel(), Kernel()]
  private let memory: GuestMemory
  private let loop: EventLoop
  private let reported = Notes<SystemError>()
  private let failures = SharedInteger()
  private let datapath: VhostDatapath

  init() throws {
    memory = try GuestMemory(size: 4 << 20, lowLimit: 4 << 20)
    loop = try EventLoop(name: "vhost test")
    datapath = try VhostDatapath(kernels, taps: [70, 71], memory: memory, loop: loop) { [reported] in reported.add($0) }
  }

  private func notifier(_ descriptor: Int32) -> Notifier { Notifier(descriptor: descriptor, owner: Owner()) }

  private func queue(
    _ index: Int, features: VirtioFeatures = [.version1, .eventIndex, .netMergeBuffers, .ringReset, .netChecksum],
    descriptors: UInt64 = 0x1_0000, at start: UInt16 = 0
  ) -> DatapathQueue {
    DatapathQueue(
      index: index, features: features,
      layout: .init(size: 256, descriptorArea: descriptors, driverArea: 0x2_0000, deviceArea: 0x3_0000),
      usesTranslation: false, startIndex: start, kick: notifier(50), call: notifier(60)
    ) { [failures] in failures.increment() }
  }

  @Test func `a ring starts with the ring features, the host's addresses and both eventfds, on its pair's tap`() throws
  {
    try datapath.start(queue(2, at: 9))
    try datapath.start(queue(3))
    #expect(kernels[0].calls == [])
    // The features are set once, because the rings share them. RING_RESET and CSUM are not the kernel's.
    let features: UInt64 = 1 << 32 | 1 << 29 | 1 << 15
    #expect(
      kernels[1].calls == [
        .features(features), .start(0, at: 9), .connect(0, tap: 71), .start(1, at: 0),
        .connect(1, tap: 71),
      ])
    let ring = try #require(kernels[1].ring)
    let base = memory.hostAddress(of: memory.regions[0])
    #expect(ring.size == 256 && ring.kick == 50 && ring.call == 60)
    #expect([ring.descriptors, ring.available, ring.used] == [base + 0x1_0000, base + 0x2_0000, base + 0x3_0000])
  }

  @Test func `a stop returns the kernel's index, and after both stops the features are set again`() throws {
    try datapath.start(queue(0))
    try datapath.start(queue(1))
    #expect(datapath.stop(queue: 0) { _ in } == .stopped(17))
    kernels[0].clear()
    try datapath.start(queue(0))
    #expect(kernels[0].calls == [.start(0, at: 0), .connect(0, tap: 70)])
    #expect(datapath.stop(queue: 0) { _ in } == .stopped(17))
    #expect(datapath.stop(queue: 1) { _ in } == .stopped(17))
    kernels[0].clear()
    try datapath.start(queue(1))
    #expect(kernels[0].calls.first == .features(1 << 32 | 1 << 29 | 1 << 15))
  }

  @Test func `the index is unknown if the kernel refuses to stop`() throws {
    try datapath.start(queue(0))
    kernels[0].refuse(EIO)
    #expect(datapath.stop(queue: 0) { _ in } == .stopped(nil))
  }

  @Test func `a ring outside RAM never reaches the kernel and costs the device a reset`() throws {
    #expect(throws: DatapathRefusal.failed) { try datapath.start(queue(0, descriptors: (4 << 20) - 4080)) }
    #expect(throws: DatapathRefusal.failed) { try datapath.start(queue(0, descriptors: 0x1_0008)) }
    #expect(kernels[0].calls == [])
  }

  @Test func `the device serves a queue that the kernel cannot serve, and the refusal is reported`() throws {
    #expect(throws: DatapathRefusal.local) { try datapath.start(queue(4)) }
    let old = try VhostDatapath([Kernel(1 << 32)], taps: [70], memory: memory, loop: loop) { [reported] in
      reported.add($0)
    }
    #expect(throws: DatapathRefusal.local) { try old.start(queue(0)) }
    #expect(reported.all.isEmpty)
    kernels[0].refuse(ENOBUFS)
    #expect(throws: DatapathRefusal.local) { try datapath.start(queue(0)) }
    #expect(reported.all == [SystemError("vhost", code: ENOBUFS)])
  }

  @Test func `packets stop while the link is down or the offloads change, and move again after both`() throws {
    try datapath.start(queue(0))
    kernels[0].clear()
    datapath.setLink(up: false)
    datapath.setHeld(true)
    #expect(kernels[0].calls == [.connect(0, tap: nil)])
    datapath.setLink(up: true)
    // A ring that starts meanwhile has no tap.
    try datapath.start(queue(1))
    #expect(kernels[0].calls == [.connect(0, tap: nil), .start(1, at: 0)])
    kernels[0].clear()
    datapath.setHeld(false)
    #expect(kernels[0].calls == [.connect(0, tap: 70), .connect(1, tap: 70)])
    kernels[0].clear()
    datapath.close()
    datapath.setLink(up: false)
    datapath.setLink(up: true)
    #expect(kernels[0].calls == [.connect(0, tap: nil), .connect(1, tap: nil)])
  }

  @Test func `a tap that the kernel refuses later costs the device a reset`() throws {
    try datapath.start(queue(0))
    datapath.setHeld(true)
    kernels[0].refuse(EBADFD)
    datapath.setHeld(false)
    #expect(eventually { failures.value == 1 })
  }

  @Test func `after the end of the interface, the device serves the queue`() throws {
    datapath.close()
    #expect(throws: DatapathRefusal.local) { try datapath.start(queue(0)) }
    #expect(kernels[0].calls == [])
  }

  @Test func `an invalid descriptor costs the device a reset while the ring runs`() throws {
    try datapath.start(queue(0))
    let event = try #require(kernels[0].ring?.error)
    let signal: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0]
    try FileDescriptor(duplicating: event).write(signal)
    #expect(eventually { failures.value == 1 })
    _ = datapath.stop(queue: 0) { _ in }
    try FileDescriptor(duplicating: event).write(signal)
    #expect(eventually { !Poll.readable([event], milliseconds: 0)[0] })
    loop.perform {}
    #expect(failures.value == 1)
  }

  @Test func `the interrupt's eventfd changes while the ring runs`() throws {
    datapath.setCall(notifier(61), queue: 0)
    try datapath.start(queue(0))
    kernels[0].clear()
    datapath.setCall(notifier(61), queue: 0)
    datapath.setCall(nil, queue: 0)
    #expect(kernels[0].calls == [.setCall(0, 61), .setCall(0, nil)])
  }
}
