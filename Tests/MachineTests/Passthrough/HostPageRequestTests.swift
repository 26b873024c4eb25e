import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import PCI
import Synchronization
import TestSupport
import Testing
import VFIO
import VTdOracle

@testable import Machine
@testable import VTd

/// Page requests from the kernel's fault queue to the guest's page request queue, and the guest's responses to the kernel.
@Suite struct HostPageRequestTests {
  static let sources = [
    RequesterID(bus: 0, device: 3, function: 0), RequesterID(bus: 0, device: 4, function: 0),
  ]

  /// The host's function, with ATS at 0x140 and PRI at 0x1a0.
  static var image: [UInt8] {
    var image = HostConfigurationSpaceTests.image
    image.store(UInt32(0x1801_000f), at: 0x140)
    image.store(UInt32(0x8000_0025), at: 0x144)
    image.store(UInt32(0x1a01_0003), at: 0x180)
    image.store(UInt32(0x0001_0013), at: 0x1a0)
    image.store(UInt32(0x8000_0001), at: 0x1a4)
    image.store(UInt32(48), at: 0x1a8)
    image.store(UInt32(32), at: 0x1ac)
    return image
  }

  private let kernel = FakeKernel(devices: [
    .init(path: "/dev/vfio/devices/vfio0"), .init(path: "/dev/vfio/devices/vfio1"),
  ])

  init() {
    kernel.state.withLock { state in
      for index in state.devices.indices {
        state.devices[index].regions[7] = (4096, 0b011, [])
        state.devices[index].regions[2] = (0x4000, 0b011, [])
        var image = Self.image
        image.store(UInt32(0x4), at: 0x18)
        state.devices[index].contents[7] = image
      }
    }
  }

  /// A guest with a unit that offers page requests, and devices of the host behind it, on a first stage.
  private final class Chain {
    let guest: Guest
    let tables: Guest.ScalableTables
    let queue: UInt64
    let bindings: HostBindings
    let memory: PassthroughMemory
    /// What a person is told.
    let notices = Notes<HostBoundDevice.Notice>()
    var bounds: [HostBoundDevice] = []
    var models: [VFIOPCI] = []
    private let kernel: FakeKernel

    /// - Parameter context: bits of the context entries: PRE, PASIDE, DTE.
    init(_ kernel: FakeKernel, devices: Int = 1, context: UInt64 = 0x1c) throws {
      self.kernel = kernel
      guest = try Guest.firstStage {
        $0.cachingMode = true
        $0.deviceIOTLB = true
        $0.pasidBits = 20
        $0.svm = true
      }
      tables = guest.scalableTables(source: sources[0], words: Guest.pasidEntry(type: 1, firstStage: 0x20_0000))
      guest.store(guest.load(tables.context) | context, at: tables.context)
      for word: UInt64 in 0..<4 {
        guest.store(guest.load(tables.context + word * 8), at: tables.context + 0x100 + word * 8)
      }
      guest.enableQueue(wide: true, pages: 4)
      queue = guest.page()
      guest.write64(0xd0, queue)
      bindings = HostBindings(unit: guest.unit)
      memory = try PassthroughMemory(
        of: IOMMUFD(calls: kernel), memory: GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
      for number in 0..<devices { try add(number) }
      guest.setRootTable(tables.root, scalable: true)
      guest.enableTranslation()
    }

    private func add(_ number: Int) throws {
      let device = try VFIODevice(
        file: KernelFile(opening: "/dev/vfio/devices/vfio\(number)", calls: kernel), to: memory.iommufd)
      let bound = try HostBoundDevice(device, memory: memory, nests: true) { [notices] in notices.add($0) }
      let requests = try #require(try bound.offerPageRequests())
      let model = try VFIOPCI(
        device,
        environment: PCIEnvironment(
          memoryBus: AddressBus(), ioBus: AddressBus(), memory: guest.memory, remapper: guest.unit,
          interrupts: VFIOPCITests.EventRouter(), workers: InlineWorkerSource()),
        address: sources[number], services: [.addressTranslation, .pageRequests])
      model.function.writeConfiguration(offset: 4, width: .word, value: 4)
      model.function.writeConfiguration(offset: 0x1a4, width: .word, value: 1)
      model.servePageRequests(requests, of: device.id, bound, bindings)
      bindings.add(bound, for: model.function.requester)
      bounds.append(bound)
      models.append(model)
    }

    /// Page requests in the guest's queue, each its two words, and takes them.
    func take() -> [[UInt64]] {
      var found: [[UInt64]] = []
      var head = guest.read64(0xc0)
      while head != guest.read64(0xc8) {
        found.append([guest.load(queue + head), guest.load(queue + head + 8)])
        head = (head + 32) & 0xfff
      }
      guest.write64(0xc0, head)
      guest.write32(0xdc, 1)
      return found
    }

    var isEmpty: Bool { guest.read64(0xc0) == guest.read64(0xc8) }

    /// The guest's response.
    func respond(_ device: Int = 0, group: UInt64, code: UInt64 = 0, pasid: UInt64 = 0) -> Bool {
      guest.submitAndWait([
        0x9 | 1 << 4 | code << 12 | UInt64(sources[device].rawValue) << 16 | pasid << 32, group << 3,
      ])
    }

    func status(_ device: Int = 0) -> UInt64 { models[device].function.readConfiguration(offset: 0x1a6, width: .word) }

    func end() {
      for (bound, model) in zip(bounds, models) {
        bindings.remove(bound)
        model.remove()
      }
    }
  }

  private func isClean() {
    #expect(kernel.complaints == [])
  }

  // MARK: What the guest is shown

  @Test func theGuestsRegistersAreItsOwn() {
    let all = HostConfigurationSpace(Self.image, services: [.addressTranslation, .pageRequests])
    var space = all.given.space
    #expect(space.get(UInt32.self, 0x100) == 0x1401_0001 && space.get(UInt32.self, 0x180) == 0x1a01_0003)
    #expect(space.get(UInt32.self, 0x140) == 0x1801_000f && space.get(UInt32.self, 0x1a0) == 0x0001_0013)
    #expect(all.direct[0x140..<0x180].allSatisfy { $0 == 0 } && all.direct[0x1a0..<0x1b0].allSatisfy { $0 == 0 })
    #expect(space.get(UInt32.self, 0x144) == 0x0000_0025, "ATS's abilities are the device's, its control the guest's")
    space.write(0x144, .doubleword, 0xffff_ffff)
    #expect(space.get(UInt32.self, 0x144) == 0x801f_0025)
    #expect(space.get(UInt32.self, 0x1a4) == 0x8100_0000, "stopped; a response needs its PASID")
    #expect(space.get(UInt32.self, 0x1a8) == 48 && space.get(UInt32.self, 0x1ac) == 0)
    space.write(0x1ac, .doubleword, 17)
    #expect(space.get(UInt32.self, 0x1ac) == 17)
    #expect(all.translationServices == [0x0f: 0x140, 0x13: 0x1a0])

    let onlyATS = HostConfigurationSpace(Self.image, services: .addressTranslation)
    #expect(onlyATS.given.space.get(UInt32.self, 0x180) == 0x0001_0003, "the list ends before PRI")
    #expect(onlyATS.translationServices == [0x0f: 0x140] && onlyATS.hasPageRequests)
    let none = HostConfigurationSpace(Self.image)
    #expect(none.given.space.get(UInt32.self, 0x100) == 0x1801_0001 && none.translationServices.isEmpty)
  }

  @Test func aCapabilityAtTheSpacesEndIsLeftOut() {
    var image = Self.image
    image.store(UInt32(0xff81_0003), at: 0x180)
    image.store(UInt32(0x0001_0013), at: 0xff8)
    let space = HostConfigurationSpace(image, services: [.addressTranslation, .pageRequests])
    #expect(space.translationServices == [0x0f: 0x140])
  }

  @Test func nothingOfItReachesTheDevice() throws {
    do {
      let chain = try Chain(kernel)
      kernel.state.withLock { $0.devices[0].writes = [] }
      let function = chain.models[0].function
      function.writeConfiguration(offset: 0x146, width: .word, value: 0x8000)
      function.writeConfiguration(offset: 0x1a4, width: .word, value: 0)
      #expect(chain.status() == 0x8100, "not enabled, nothing outstanding: stopped")
      function.writeConfiguration(offset: 0x1ac, width: .doubleword, value: 32)
      function.writeConfiguration(offset: 0x1a4, width: .word, value: 1)
      #expect(chain.status() == 0x8000)
      #expect(function.readConfiguration(offset: 0x146, width: .word) == 0x8000)
      #expect(function.readConfiguration(offset: 0x1ac, width: .doubleword) == 32)
      #expect(kernel.state.withLock { $0.devices[0].writes.isEmpty })
      chain.end()
    }
    isClean()
  }

  // MARK: The way there and back

  @Test func aRequestReachesTheGuestAndItsResponseTheKernel() throws {
    do {
      let chain = try Chain(kernel)
      kernel.requestPages(of: 0, group: 0x1a5, [0x1234_5000, 0x1234_6000])
      #expect(eventually { chain.guest.read64(0xc8) == 64 })
      #expect(
        chain.take() == [
          [0x0018_0101, 0x1234_5000 | 0x1a5 << 3 | 3], [0x0018_0101, 0x1234_6000 | 0x1a5 << 3 | 7],
        ])
      #expect(kernel.responses == [] && kernel.outstandingCount == 1)
      #expect(chain.respond(group: 0x1a5))
      #expect(kernel.responses == [FakeResponse(device: 0, index: 0x1a5, isSuccess: true)])
      kernel.requestPages(of: 0, group: 3, [0x1234_5000])
      #expect(eventually { !chain.isEmpty })
      _ = chain.take()
      #expect(chain.respond(group: 3, code: 1))
      #expect(kernel.responses.last == FakeResponse(device: 0, index: 3, isSuccess: false))
      #expect(chain.status() == 0x8000 && chain.guest.takeFault() == nil)
      chain.end()
    }
    isClean()
  }

  /// As kernels after 6.12 hand them over.
  @Test func requestsWithoutPASID() throws {
    do {
      let chain = try Chain(kernel)
      kernel.requestPages(of: 0, group: 9, pasid: nil, [0x1234_5000])
      kernel.requestPages(of: 0, group: 9, [0x1234_6000])
      #expect(eventually { chain.guest.read64(0xc8) == 64 })
      #expect(chain.take() == [[0x0018_0001, 0x1234_5000 | 9 << 3 | 7], [0x0018_0101, 0x1234_6000 | 9 << 3 | 7]])
      #expect(chain.respond(group: 9, code: 1))
      #expect(chain.guest.submitAndWait([0x9 | 0x18 << 16, 9 << 3]))
      #expect(kernel.responses.map(\.isSuccess) == [false, true] && chain.status() == 0x8000)
      chain.end()
    }
    isClean()
  }

  /// A response for each device, whatever the order; both by the same queue and the same table.
  @Test func devicesAreToldApart() throws {
    do {
      let chain = try Chain(kernel, devices: 2)
      #expect(kernel.state.withLock { $0.queueOfTable.count } == 1, "they share the table")
      for device in 0..<2 { kernel.requestPages(of: device, group: 7, [0x5000]) }
      #expect(eventually { chain.guest.read64(0xc8) == 64 })
      #expect(chain.take().map { $0[0] } == [0x0018_0101, 0x0020_0101])
      #expect(chain.respond(1, group: 7, code: 1) && chain.respond(0, group: 7))
      #expect(
        kernel.responses == [
          FakeResponse(device: 1, index: 7, isSuccess: false), FakeResponse(device: 0, index: 7, isSuccess: true),
        ])
      chain.end()
    }
    isClean()
  }

  @Test(arguments: [true, false]) func aGroupMayBeLong(_ tellsWhatDoesNotFit: Bool) throws {
    kernel.state.withLock { $0.tellsWhatDoesNotFit = tellsWhatDoesNotFit }
    do {
      let chain = try Chain(kernel)
      kernel.requestPages(of: 0, group: 1, (0..<100).map { 0x10_0000 + $0 << 12 })
      #expect(eventually { chain.guest.read64(0xc8) == 3200 })
      #expect(chain.take().map { $0[1] >> 12 } == (0x100..<0x164 as Range<UInt64>).map { $0 })
      #expect(chain.respond(group: 1) && kernel.responses.count == 1)
      chain.end()
    }
    isClean()
  }

  /// Before a response goes, what was invalidated before it is.
  @Test func invalidationsComeBeforeTheResponse() throws {
    do {
      let chain = try Chain(kernel)
      kernel.requestPages(of: 0, group: 1, [0x5000])
      #expect(eventually { !chain.isEmpty })
      kernel.state.withLock { $0.calls = [] }
      let kernel = kernel
      chain.guest.submit([6 | 3 << 4 | 5 << 16, 0x5000], [0x9 | 1 << 4 | 0x18 << 16, 1 << 3])
      #expect(kernel.responses.count == 1)
      #expect(kernel.state.withLock { $0.calls.filter { $0 != "read" } } == ["INVALIDATE", "respond"])
      chain.end()
    }
    isClean()
  }

  // MARK: What the guest does wrong

  @Test func responsesThatFitNothingChangeNothing() throws {
    do {
      let chain = try Chain(kernel, devices: 2)
      kernel.requestPages(of: 0, group: 5, [0x5000])
      #expect(eventually { !chain.isEmpty })
      #expect(chain.respond(group: 6), "another group")
      #expect(chain.status() == 0x8002)
      chain.models[0].function.writeConfiguration(offset: 0x1a6, width: .word, value: 2)
      #expect(chain.status() == 0x8000)
      #expect(chain.respond(1, group: 5), "another device")
      #expect(chain.respond(group: 5, pasid: 9), "another PASID")
      #expect(chain.guest.submitAndWait([0x9 | 0x18 << 16, 5 << 3]), "without PASID")
      #expect(chain.guest.submitAndWait([0x9 | 1 << 4 | 0x99 << 16, 5 << 3]), "nobody")
      #expect(kernel.responses == [] && kernel.state.withLock { $0.refusedResponses } == 0)
      #expect(chain.respond(group: 5) && chain.respond(group: 5, code: 1), "twice")
      #expect(kernel.responses == [FakeResponse(device: 0, index: 5, isSuccess: true)])
      #expect(kernel.state.withLock { $0.refusedResponses } == 0, "the kernel hears of no other")
      chain.end()
    }
    isClean()
  }

  @Test func aFailureIsInvalidForTheHostAndShownToTheGuest() throws {
    do {
      let chain = try Chain(kernel)
      kernel.requestPages(of: 0, group: 5, [0x5000])
      #expect(eventually { !chain.isEmpty })
      #expect(chain.respond(group: 5, code: 15))
      #expect(kernel.responses == [FakeResponse(device: 0, index: 5, isSuccess: false)])
      #expect(chain.status() == 0x8001)
      chain.end()
    }
    isClean()
  }

  /// The index comes again before its response, which the function may not do.
  @Test func anIndexThatIsOutstandingIsAnsweredAsInvalid() throws {
    do {
      let chain = try Chain(kernel)
      kernel.requestPages(of: 0, group: 5, [0x5000])
      #expect(eventually { !chain.isEmpty })
      for _ in 0..<50 { kernel.requestPages(of: 0, group: 5, [0x6000]) }
      #expect(eventually { kernel.responses.count == 50 })
      #expect(kernel.responses.allSatisfy { !$0.isSuccess && !$0.isAutomatic })
      #expect(chain.take().count == 1 && kernel.outstandingCount == 1)
      #expect(chain.respond(group: 5))
      #expect(kernel.responses.last?.isSuccess == true && kernel.responses.count == 51)
      chain.end()
    }
    isClean()
  }

  // MARK: Where the guest sees none

  @Test func anOverflowIsAnsweredWithSuccess() throws {
    do {
      let chain = try Chain(kernel)
      for group in 0..<130 as Range<UInt32> { kernel.requestPages(of: 0, group: group, [0x5000]) }
      #expect(eventually { kernel.responses.count == 3 })
      #expect(kernel.responses.map(\.index) == [127, 128, 129] && kernel.responses.allSatisfy(\.isSuccess))
      #expect(chain.guest.read32(0xdc) == 3 && kernel.outstandingCount == 127)
      for group in 0..<127 as Range<UInt64> { #expect(chain.respond(group: group)) }
      #expect(kernel.responses.count == 130 && kernel.outstandingCount == 0)
      chain.end()
    }
    isClean()
  }

  @Test func whatTheGuestDidNotEnableIsInvalid() throws {
    do {
      let chain = try Chain(kernel)
      let function = chain.models[0].function
      var count = 0
      /// - Parameter change: made, and taken back with true.
      func refused(_ name: Comment, pasid: UInt32? = 0, fault: FaultReason? = nil, _ change: (Bool) -> Void) {
        change(false)
        count += 1
        kernel.requestPages(of: 0, group: UInt32(count), pasid: pasid, [0x5000])
        #expect(eventually { kernel.responses.count == count }, name)
        #expect(kernel.responses.last?.isSuccess == false && chain.isEmpty, name)
        #expect(chain.guest.takeFault()?.reason == fault?.rawValue, name)
        change(true)
      }
      refused("PRI") { function.writeConfiguration(offset: 0x1a4, width: .word, value: $0 ? 1 : 0) }
      refused("bus mastering") { function.writeConfiguration(offset: 4, width: .word, value: $0 ? 4 : 0) }
      let context = chain.guest.load(chain.tables.context)
      refused("PRE", fault: .pageRequestNotEnabled) {
        chain.guest.store($0 ? context : context & ~0x10, at: chain.tables.context)
      }
      refused("PASIDE", fault: .pasidNotEnabled) {
        chain.guest.store($0 ? context : context & ~0x8, at: chain.tables.context)
      }
      refused("another PASID", pasid: 5) { _ in }
      // The requests' own PASID is the guest's 0 only where RID_PASID is.
      let entry = [0, 8, 16].map { chain.guest.load(chain.tables.entry + $0) }
      for (index, word) in entry.enumerated() {
        chain.guest.store(word, at: chain.tables.entry + 64 + UInt64(index) * 8)
      }
      refused("PASID 0 beside another RID_PASID") { isBack in
        chain.guest.store(isBack ? 0 : 1, at: chain.tables.context + 8)
        _ = chain.guest.submitAndWait([1 | 1 << 4], [7 | 3 << 4])
      }
      #expect(kernel.responses.allSatisfy { !$0.isAutomatic })
      kernel.requestPages(of: 0, group: 99, [0x5000])
      #expect(eventually { !chain.isEmpty } && chain.respond(group: 99) && kernel.responses.last?.isSuccess == true)
      chain.end()
    }
    isClean()
  }

  // MARK: What is outstanding when things change

  @Test func aTableThatIsReplacedTakesItsRequestsWithIt() throws {
    do {
      let chain = try Chain(kernel, devices: 2)
      kernel.requestPages(of: 0, group: 5, [0x5000])
      #expect(eventually { !chain.isEmpty })
      chain.guest.store(0x30_0000, at: chain.tables.entry + 16)
      #expect(chain.guest.submitAndWait([7 | 1 << 4 | 5 << 16, 0]))
      #expect(kernel.responses == [FakeResponse(device: 0, index: 5, isSuccess: false, isAutomatic: true)])
      // The kernel gives the cookie to the next, which is another device's: the late response is not its.
      kernel.requestPages(of: 1, group: 5, [0x7000])
      #expect(eventually { kernel.outstandingCount == 1 && chain.guest.read64(0xc8) == 64 })
      #expect(chain.respond(group: 5))
      #expect(kernel.responses.count == 1 && chain.status() == 0x8002)
      #expect(chain.respond(1, group: 5))
      #expect(kernel.responses.last == FakeResponse(device: 1, index: 5, isSuccess: true))
      chain.end()
    }
    isClean()
  }

  @Test(arguments: ["blocked", "second stage", "unit's reset", "function's reset", "PRI's reset", "unplug"])
  func nothingOutstandingIsLost(_ change: String) throws {
    do {
      let chain = try Chain(kernel)
      let function = chain.models[0].function
      for group in 0..<3 as Range<UInt32> { kernel.requestPages(of: 0, group: group, [0x5000]) }
      #expect(eventually { chain.guest.read64(0xc8) == 96 })
      switch change {
      case "blocked":
        chain.guest.store(0, at: chain.tables.entry)
        #expect(chain.guest.submitAndWait([7 | 1 << 4 | 5 << 16, 0]))
      case "second stage": chain.guest.command(clear: 31)
      case "unit's reset": chain.guest.unit.reset()
      case "function's reset": function.reset()
      case "PRI's reset":
        function.writeConfiguration(offset: 0x1a4, width: .word, value: 3)
        #expect(kernel.responses == [], "not while they are enabled")
        function.writeConfiguration(offset: 0x1a4, width: .word, value: 0)
        #expect(chain.status() == 0x8000, "not stopped: there are some outstanding")
        function.writeConfiguration(offset: 0x1a4, width: .word, value: 2)
        #expect(chain.status() == 0x8100 && function.readConfiguration(offset: 0x1a4, width: .word) == 0)
      default:
        chain.bindings.remove(chain.bounds[0])
        chain.models[0].remove()
      }
      #expect(kernel.responses.map(\.index).sorted() == [0, 1, 2] && kernel.responses.allSatisfy { !$0.isSuccess })
      #expect(kernel.outstandingCount == 0)
      chain.end()
    }
    #expect(kernel.responses.count == 3)
    isClean()
  }

  /// From nothing to a table again: the kernel takes page requests only after a table of its own.
  @Test func pageRequestsComeBack() throws {
    do {
      let chain = try Chain(kernel)
      let words = chain.guest.load(chain.tables.entry)
      for round in 1...3 {
        chain.guest.store(0, at: chain.tables.entry)
        #expect(chain.guest.submitAndWait([7 | 1 << 4 | 5 << 16, 0]))
        #expect(kernel.state.withLock { $0.devices[0].attachedTo } == nil)
        chain.guest.store(words, at: chain.tables.entry)
        #expect(chain.guest.submitAndWait([7 | 1 << 4 | 5 << 16, 0]))
        kernel.requestPages(of: 0, group: 2, [0x5000])
        #expect(eventually { !chain.isEmpty })
        _ = chain.take()
        #expect(chain.respond(group: 2) && kernel.responses.filter(\.isSuccess).count == round)
      }
      #expect(chain.notices.all == [])
      chain.end()
    }
    isClean()
  }

  // MARK: What the kernel refuses

  @Test(arguments: [IOMMU_FAULT_QUEUE_ALLOC, IOMMU_HWPT_ALLOC, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0])
  func whatIsRefusedAtTheStartIsNotShown(_ call: UInt32) throws {
    do {
      let memory = try PassthroughMemory(
        of: IOMMUFD(calls: kernel), memory: GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
      let device = try VFIODevice(
        file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: memory.iommufd)
      let bound = try HostBoundDevice(device, memory: memory, nests: true) { _ in }
      let before = kernel.state.withLock { $0.devices[0].attachedTo }
      kernel.state.withLock { state in
        if call == 0 { state.devices[0].hasPageRequests = false } else { state.failing[call] = EOPNOTSUPP }
      }
      #expect(throws: SystemError.self) { try bound.offerPageRequests() }
      kernel.state.withLock { $0.failing = [:] }
      #expect(kernel.state.withLock { $0.devices[0].attachedTo } == before)
      let stage = GuestFirstStage(root: 0x5000, levels: 4, domain: 5, pasid: 0)
      let table = try bound.bind(nil, to: .firstStage(stage))
      #expect(table != nil && kernel.state.withLock { $0.queueOfTable.isEmpty }, "without, as before")
      _ = try bound.bind(nil, to: .secondStage)
    }
    isClean()
  }

  /// What the kernel took at the start it refuses later: the guest's table goes without, and that is told once.
  @Test func aLaterRefusalIsToldOnce() throws {
    do {
      let chain = try Chain(kernel)
      kernel.state.withLock { $0.devices[0].hasPageRequests = false }
      for root: UInt64 in [0x30_0000, 0x40_0000] {
        chain.guest.store(root, at: chain.tables.entry + 16)
        #expect(chain.guest.submitAndWait([7 | 1 << 4 | 5 << 16, 0]))
        let attached = kernel.state.withLock { state in state.devices[0].attachedTo.flatMap { state.objects[$0] } }
        if case .nested(_, root) = attached {} else { Issue.record("not on the guest's table") }
      }
      let refusal = SystemError("VFIO_DEVICE_ATTACH_IOMMUFD_PT", "/dev/vfio/devices/vfio0", code: ENODEV)
      #expect(chain.notices.all == [.pageRequestsRefused(refusal)])
      #expect(chain.guest.takeFault() == nil)
      kernel.requestPages(of: 0, group: 1, [0x5000])
      #expect(kernel.responses == [FakeResponse(device: 0, index: 1, isSuccess: false, isAutomatic: true)])
      chain.end()
    }
    isClean()
  }

  /// A group beyond all measure blocks the kernel's queue: the devices go on without it.
  @Test func aQueueThatCannotBeReadIsGivenUp() throws {
    do {
      let chain = try Chain(kernel, devices: 2)
      kernel.requestPages(of: 1, group: 4, [0x5000])
      #expect(eventually { !chain.isEmpty })
      kernel.requestPages(of: 0, group: 1, (0..<5000).map { $0 << 12 })
      kernel.requestPages(of: 1, group: 2, [0x5000])
      #expect(eventually { kernel.responses.count == 3 })
      #expect(kernel.responses.allSatisfy { !$0.isSuccess && $0.isAutomatic })
      let refusal = SystemError("read", "fault queue", code: EINVAL)
      #expect(
        eventually {
          chain.notices.all == [.pageRequestsRefused(refusal), .pageRequestsRefused(refusal)]
        })
      #expect(chain.take().count == 1 && chain.respond(1, group: 4))
      #expect(kernel.responses.count == 3, "the late response is nobody's")
      #expect(
        eventually {
          kernel.state.withLock { state in
            state.devices.allSatisfy { $0.attachedTo.map { state.queueOfTable[$0] == nil } ?? false }
          }
        })
      chain.end()
    }
    isClean()
  }

  /// Whoever hears that a queue is given up, on its thread.
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
      while !mayGoOn.load(ordering: .acquiring) { usleep(1000) }
      usleep(50_000)
      body()
      isDone.store(true, ordering: .releasing)
    }
  }

  /// A device that comes while the queue's thread still puts others on tables without it.
  @Test func aQueueThatIsGivenUpIsReplacedWithoutWaitingForItsDevices() throws {
    do {
      let memory = try PassthroughMemory(
        of: IOMMUFD(calls: kernel), memory: GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
      let device = try VFIODevice(
        file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: memory.iommufd)
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
      try #require(eventually { hearer.isDone.load(ordering: .acquiring) }, "the two wait for each other")
      another.join()
      let isReplaced = hearer.isReplaced.load(ordering: .acquiring)
      #expect(isReplaced)
      let late = Hearer {}
      late.mayGoOn.store(true, ordering: .releasing)
      requests.add(late, for: 77)
      let hasHeard = late.hasHeard.load(ordering: .acquiring)
      #expect(hasHeard, "who comes to a queue that has failed")
      requests.remove(77)
      requests.remove(device.id)
    }
    isClean()
  }

  /// Start, requests, changes, the end: each call of the kernel failing in turn leaves nothing behind.
  @Test func nothingLeaksWhicheverCallFails() throws {
    for calls in 0..<80 {
      let kernel = FakeKernel(devices: [.init(path: "/dev/vfio/devices/vfio0")])
      kernel.state.withLock { $0.callsBeforeFailure = calls }
      var isComplete = false
      do {
        let memory = try PassthroughMemory(
          of: IOMMUFD(calls: kernel), memory: GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
        let device = try VFIODevice(
          file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: memory.iommufd)
        let bound = try HostBoundDevice(device, memory: memory, nests: true) { _ in }
        _ = try bound.offerPageRequests()
        let stage = GuestFirstStage(root: 0x5000, levels: 4, domain: 5, pasid: 0)
        let table = try bound.bind(nil, to: .firstStage(stage))
        kernel.requestPages(of: 0, group: 1, [0x5000])
        _ = eventually { kernel.responses.count == 1 }
        _ = try bound.bind(nil, to: .blocked(.refused))
        _ = try bound.bind(nil, to: .firstStage(stage))
        _ = try bound.bind(nil, to: .secondStage)
        _ = table
        isComplete = kernel.state.withLock { ($0.callsBeforeFailure ?? -1) >= 0 }
      } catch {}
      #expect(kernel.complaints == [], "call \(calls)")
      if isComplete {
        #expect(calls >= 18)
        return
      }
    }
    Issue.record("the sequence did not end within 80 calls")
  }
}
