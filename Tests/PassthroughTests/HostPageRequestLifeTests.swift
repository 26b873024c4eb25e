import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import Synchronization
import TestSupport
import Testing
import VFIO
import VTdOracle

@testable import Passthrough
@testable import VTd

/// Checks that each page request of the host's devices is answered exactly once while tables change and kernel calls
/// fail.
@Suite struct HostPageRequestLifeTests {
  // MARK: Outstanding requests during changes

  @Test("replacing a table answers its outstanding requests")
  func replacingATableAnswersItsRequests() throws {
    try PageRequestChain.run(devices: 2) { chain, kernel in
      chain.request(group: 5)
      #expect(chain.setTable(0x30_0000))
      #expect(kernel.responses == [FakeResponse(device: 0, index: 5, isSuccess: false, isAutomatic: true)])
      // The kernel reuses the cookie for the next request, of another device. The late response must not answer that
      // one.
      chain.request(1, group: 5)
      #expect(kernel.outstandingCount == 1)
      #expect(chain.respond(group: 5))
      #expect(kernel.responses.count == 1 && chain.status() == 0x8002)
      #expect(chain.respond(1, group: 5))
      #expect(kernel.responses.last == FakeResponse(device: 1, index: 5, isSuccess: true))
    }
  }

  @Test(
    "no outstanding request is lost in a change",
    arguments: ["blocked", "second stage", "unit's reset", "function's reset", "PRI's reset", "unplug"])
  func nothingOutstandingIsLost(_ change: String) throws {
    let kernel = try PageRequestChain.run { chain, kernel in
      let function = chain.models[0].function
      for group in 0..<3 as Range<UInt32> { chain.request(group: group) }
      switch change {
      case "blocked":
        chain.guest.store(0, at: chain.tables.entry)
        #expect(chain.invalidateEntry())
      case "second stage": chain.guest.command(clear: 31)
      case "unit's reset": chain.guest.unit.reset()
      case "function's reset": function.reset()
      case "PRI's reset":
        function.writeConfiguration(offset: 0x1a4, width: .word, value: 3)
        #expect(kernel.responses == [], "not while page requests are enabled")
        function.writeConfiguration(offset: 0x1a4, width: .word, value: 0)
        #expect(chain.status() == 0x8000, "not stopped: some are outstanding")
        function.writeConfiguration(offset: 0x1a4, width: .word, value: 2)
        #expect(chain.status() == 0x8100 && function.readConfiguration(offset: 0x1a4, width: .word) == 0)
      default:
        chain.bindings.remove(chain.bounds[0])
        chain.models[0].function.revoke()
      }
      #expect(kernel.responses.map(\.index).sorted() == [0, 1, 2] && kernel.responses.allSatisfy { !$0.isSuccess })
      #expect(kernel.outstandingCount == 0)
    }
    #expect(kernel.responses.count == 3)
  }

  /// The device gets a table again after it had none. A kernel before 6.15 attaches a table with page requests only to
  /// a device that has a table which is not nested.
  @Test("page requests work again after the device had no table")
  func pageRequestsComeBack() throws {
    try PageRequestChain.run { chain, kernel in
      let words = chain.guest.load(chain.tables.entry)
      for round in 1...3 {
        chain.guest.store(0, at: chain.tables.entry)
        #expect(chain.invalidateEntry())
        #expect(kernel.attached(0) == nil)
        chain.guest.store(words, at: chain.tables.entry)
        #expect(chain.invalidateEntry())
        chain.request(group: 2)
        #expect(chain.respond(group: 2) && kernel.responses.filter(\.isSuccess).count == round)
      }
      #expect(chain.notices.all == [])
    }
  }

  // MARK: Refusals of the kernel

  @Test(
    "page requests that the kernel refuses at the start are not offered",
    arguments: [IOMMU_FAULT_QUEUE_ALLOC, IOMMU_HWPT_ALLOC, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0])
  func refusedPageRequestsAreNotOffered(_ call: UInt32) throws {
    let kernel = PageRequestChain.makeKernel()
    do {
      let memory = try kernel.makeMemory()
      let bound = try HostBoundDevice(kernel.openDevice(0, for: memory), memory: memory, nests: true) { _ in }
      let before = kernel.attached(0)
      kernel.state.withLock { state in
        if call == 0 { state.devices[0].hasPageRequests = false } else { state.failing[call] = EOPNOTSUPP }
      }
      #expect(throws: SystemError.self) { try bound.offerPageRequests() }
      kernel.state.withLock { $0.failing = [:] }
      #expect(kernel.attached(0) == before)
      let stage = GuestFirstStage(root: 0x5000, levels: 4, domain: 5, pasid: 0)
      let table = try bound.bind(nil, to: .firstStage(stage))
      #expect(table != nil && kernel.state.withLock { $0.queueOfTable.isEmpty }, "no page requests")
      _ = try bound.bind(nil, to: .secondStage)
    }
    #expect(kernel.complaints == [])
  }

  /// The kernel accepts page requests at the start and refuses them later: the guest's table is used without them.
  @Test("a later refusal is reported once")
  func aLaterRefusalIsReportedOnce() throws {
    try PageRequestChain.run { chain, kernel in
      kernel.state.withLock { $0.devices[0].hasPageRequests = false }
      for root: UInt64 in [0x30_0000, 0x40_0000] {
        #expect(chain.setTable(root))
        if case .nested(_, root) = kernel.attached(0) {} else { Issue.record("not on the guest's table") }
      }
      let refusal = SystemError("VFIO_DEVICE_ATTACH_IOMMUFD_PT", "/dev/vfio/devices/vfio0", code: ENODEV)
      #expect(chain.notices.all == [.pageRequestsRefused(refusal)])
      #expect(chain.guest.takeFault() == nil)
      kernel.requestPages(of: 0, group: 1, [0x5000])
      #expect(kernel.responses == [FakeResponse(device: 0, index: 1, isSuccess: false, isAutomatic: true)])
    }
  }

  /// An oversized group blocks the kernel's queue. The devices continue without that queue.
  @Test("devices continue without a queue that cannot be read")
  func aQueueThatCannotBeReadIsGivenUp() throws {
    try PageRequestChain.run(devices: 2) { chain, kernel in
      chain.request(1, group: 4)
      kernel.requestPages(of: 0, group: 1, (0..<5000).map { $0 << 12 })
      kernel.requestPages(of: 1, group: 2, [0x5000])
      #expect(eventually { kernel.responses.count == 3 })
      #expect(kernel.responses.allSatisfy { !$0.isSuccess && $0.isAutomatic })
      let refusal = SystemError("read", "fault queue", code: EINVAL)
      #expect(eventually { chain.notices.all == [.pageRequestsRefused(refusal), .pageRequestsRefused(refusal)] })
      #expect(chain.take().count == 1 && chain.respond(1, group: 4))
      #expect(kernel.responses.count == 3, "the late response answers no request")
      #expect(
        eventually {
          kernel.state.withLock { state in
            state.devices.allSatisfy { $0.attachedTo.map { state.queueOfTable[$0] == nil } ?? false }
          }
        })
    }
  }

  /// Receives the failure of a queue, on the queue's thread.
  private final class Hearer: PageRequestTaker {
    let hasHeard = Atomic(false)
    let mayGoOn = Atomic(false)
    let isDone = Atomic(false)
    let isReplaced = Atomic(false)
    private let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }

    func take(_ request: PageRequest) -> PageRequestOutcome { .discarded }

    func queueFailed(_ error: SystemError) {
      hasHeard.store(true, ordering: .releasing)
      _ = eventually { mayGoOn.load(ordering: .acquiring) }
      usleep(50_000)
      body()
      isDone.store(true, ordering: .releasing)
    }
  }

  /// Adds a device while the failed queue's thread still moves the other devices to tables without the queue.
  @Test("a queue that failed is replaced without waiting for its devices")
  func aQueueThatIsGivenUpIsReplacedWithoutWaitingForItsDevices() throws {
    let kernel = PageRequestChain.makeKernel()
    do {
      let memory = try kernel.makeMemory()
      let device = try kernel.openDevice(0, for: memory)
      let bound = try HostBoundDevice(device, memory: memory, nests: true) { _ in }
      let requests = try #require(try bound.offerPageRequests())
      _ = try bound.bind(nil, to: .firstStage(GuestFirstStage(root: 0x5000, levels: 4, domain: 5, pasid: 0)))
      let hearer = Hearer { [weak memory] in _ = try? memory?.nothing() }
      requests.add(hearer, for: device.id)
      kernel.requestPages(of: 0, group: 1, (0..<5000).map { $0 << 12 })
      #expect(eventually { hearer.hasHeard.load(ordering: .acquiring) })
      let another = try Thread(name: "another device") {
        hearer.mayGoOn.store(true, ordering: .releasing)
        if let made = try? memory.pageRequests(), made !== requests {
          hearer.isReplaced.store(true, ordering: .releasing)
        }
      }
      let isDone = eventually { hearer.isDone.load(ordering: .acquiring) }
      try #require(isDone, "the two threads wait for each other")
      another.join()
      let isReplaced = hearer.isReplaced.load(ordering: .acquiring)
      #expect(isReplaced)
      let late = Hearer {}
      late.mayGoOn.store(true, ordering: .releasing)
      requests.add(late, for: 77)
      let hasHeard = late.hasHeard.load(ordering: .acquiring)
      #expect(hasHeard, "a taker added to a failed queue is notified")
      requests.remove(77)
      requests.remove(device.id)
    }
    #expect(kernel.complaints == [])
  }

  /// In each round another kernel call fails.
  @Test("a failure of any kernel call leaves nothing behind")
  func nothingLeaksWhicheverCallFails() {
    for calls in 0..<80 {
      let kernel = PageRequestChain.makeKernel()
      kernel.state.withLock { $0.callsBeforeFailure = calls }
      do {
        let memory = try kernel.makeMemory()
        let bound = try HostBoundDevice(kernel.openDevice(0, for: memory), memory: memory, nests: true) { _ in }
        _ = try bound.offerPageRequests()
        let stage = GuestFirstStage(root: 0x5000, levels: 4, domain: 5, pasid: 0)
        let table = try bound.bind(nil, to: .firstStage(stage))
        _ = try bound.bind(nil, to: .blocked(.refused))
        _ = try bound.bind(nil, to: .firstStage(stage))
        _ = try bound.bind(nil, to: .secondStage)
        _ = table
      } catch {}
      #expect(kernel.complaints == [], "call \(calls)")
      if kernel.state.withLock({ $0.failed }) == nil {
        #expect(calls >= 18)
        return
      }
    }
    Issue.record("the sequence did not end within 80 calls")
  }

  /// In each round another kernel call fails while requests arrive and tables change.
  @Test("every request is answered once, by the guest or by the kernel, whichever call fails")
  func everyRequestIsAnsweredWhicheverCallFails() throws {
    for calls in 0..<80 {
      let kernel = try PageRequestChain.run { chain, kernel in
        kernel.state.withLock { $0.callsBeforeFailure = calls }
        let words = chain.guest.load(chain.tables.entry)
        for round in 1...3 {
          kernel.requestPages(of: 0, group: 1, [0x5000])
          #expect(eventually { chain.count == 1 || kernel.responses.count == round }, "call \(calls)")
          if !chain.take().isEmpty { #expect(chain.respond(group: 1)) }
          #expect(kernel.responses.count == round && kernel.outstandingCount == 0, "call \(calls)")
          if round == 2 {
            chain.guest.store(0, at: chain.tables.entry)
            #expect(chain.invalidateEntry())
            chain.guest.store(words, at: chain.tables.entry)
          }
          #expect(chain.setTable(0x30_0000 + UInt64(round) << 20))
        }
      }
      if kernel.state.withLock({ $0.failed }) == nil {
        #expect(calls >= 10)
        return
      }
    }
    Issue.record("the sequence did not end within 80 calls")
  }
}
