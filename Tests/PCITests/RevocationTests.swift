import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

/// Tests which operations refuse ends at once, for which operations revoke waits, and that late accesses cannot undo
/// either.
@Suite struct RevocationTests {
  private static let base: UInt64 = 0xc000_0000

  private let parking = WatchedParking()
  private let workers = InlineWorkerSource()
  private let memoryBus = AddressBus()
  private let memory = HeapMemory(size: 0x1000)
  private let line = RecordingLine()
  private let root = Bus(number: 0)

  private func make(
    interrupts: any InterruptRouter = RecordingRouter(), workers other: (any QueueWorkerSource)? = nil,
    msix: Bool = false, remapper: (any DMARemapper)? = nil
  ) throws -> (Function, GatedModel) {
    var description = FunctionDescription.plain
    description.interruptPin = 1
    description.baseAddressRegisters = [BaseAddressRegister(index: 0, space: .memory32, size: 0x1000)]
    if msix { description.msix = MSIX.Layout(vectorCount: 3, bar: 0, tableOffset: 0x800, pendingOffset: 0xc00) }
    let function = Function(
      description, at: RequesterID(rawValue: 0x10),
      environment: PCIEnvironment(
        memoryBus: memoryBus, ioBus: AddressBus(), memory: memory,
        remapper: remapper ?? DirectRemapper(memory: memory), interrupts: interrupts, workers: other ?? workers,
        makeParking: { [parking] in parking }))
    let model = GatedModel()
    function.install(model)
    function.connect(interruptLine: line)
    try root.add(function)
    function.write32(0x10, UInt32(Self.base))
    function.command([.memorySpaceEnable, .busMasterEnable])
    return (function, model)
  }

  /// Revokes a function while one of its operations is in flight, and checks that revoke waits.
  /// - Parameter end: Ends the operation in flight.
  private func revokeWaits(for function: Function, until end: () -> Void) {
    let before = parking.sleepers.value
    let isRevoked = SharedInteger()
    let thread = TestThread {
      function.revoke()
      isRevoked.increment()
    }
    #expect(eventually { parking.sleepers.value > before || isRevoked.value == 1 })
    #expect(isRevoked.value == 0, "revoke must wait for the operation in flight")
    end()
    thread.join()
    #expect(isRevoked.value == 1)
  }

  // MARK: Accesses

  @Test func `revoke waits for an access in flight, and refuse does not`() throws {
    let (function, model) = try make()
    let answer = SharedInteger()
    let access = TestThread { [memoryBus] in
      answer.value = Int(memoryBus.read(address: Self.base, width: .byte) ?? 0)
    }
    model.entered.wait()
    function.refuse()
    #expect(memoryBus.read(address: Self.base, width: .byte) == nil)
    #expect(!memoryBus.write(address: Self.base, width: .byte, value: 1))
    revokeWaits(for: function) { model.mayLeave.signal() }
    access.join()
    #expect(answer.value == 0x55 && model.accesses.value == 1)
  }

  @Test func `revoke waits for a configuration access in flight, and refuse does not`() throws {
    let (function, model) = try make()
    model.blocksConfiguration.value = 1
    let access = TestThread { function.write8(0x0c, 1) }
    model.entered.wait()
    function.refuse()
    revokeWaits(for: function) { model.mayLeave.signal() }
    access.join()
  }

  @Test func `a refused function is off its bus, reads all ones and ignores writes`() throws {
    let (function, model) = try make()
    function.refuse()
    #expect(root.isEmpty)
    #expect(function.read32(0) == 0xffff_ffff && function.read8(0x3d) == 0xff)
    model.configurationWrites.value = 0
    function.command([.memorySpaceEnable, .busMasterEnable])
    function.write32(0x10, 0xd000_0000)
    function.place(function.description.baseAddressRegisters[0], at: 0xd000_0000)
    function.reset()
    #expect(model.configurationWrites.value == 0 && model.resets.value == 0)
    #expect(memoryBus.read(address: 0xd000_0000, width: .byte) == nil)
    #expect(!function.requester.busMasterEnable)
    function.requester.busMasterEnable = true
    #expect(!function.requester.busMasterEnable, "a refused function never masters the bus again")
    function.revoke()
  }

  @Test func `a function refused before it is added to a bus does not stay there`() throws {
    let (function, _) = try make()
    function.refuse()
    let other = Bus(number: 1)
    try other.add(function)
    #expect(other.isEmpty)
    function.revoke()
  }

  @Test func `an access may refuse its own function`() throws {
    let (function, model) = try make()
    model.onWrite.withLock { $0 = { [weak function] in function?.refuse() } }
    memoryBus.write(address: Self.base, width: .byte, value: 1)
    #expect(function.environment.isRefused && memoryBus.read(address: Self.base, width: .byte) == nil)
    function.revoke()
  }

  @Test func `concurrent refusals and revocations release the function once`() throws {
    for _ in 0..<50 {
      let (function, model) = try make()
      let threads =
        (0..<2).map { _ in TestThread { function.refuse() } } + (0..<2).map { _ in TestThread { function.revoke() } }
      for thread in threads { thread.join() }
      #expect(root.isEmpty && model.releases.value == 1 && model.ends.value == 1)
      #expect(memoryBus.read(address: Self.base, width: .byte) == nil)
    }
  }

  // MARK: BARs

  @Test func `refuse returns while a BAR is being moved, and afterwards the BAR is not on the bus`() throws {
    let (function, model) = try make()
    model.blocksPlacing.value = 1
    let access = TestThread { function.write32(0x10, 0xd000_0000) }
    model.entered.wait()
    function.refuse()
    // The region is still on the bus, where the move put it; the model is not reached.
    #expect(memoryBus.read(address: 0xd000_0000, width: .byte) == 0xff && model.accesses.value == 0)
    revokeWaits(for: function) {
      model.blocksPlacing.value = 0
      model.mayLeave.signal()
    }
    access.join()
    for base in [Self.base, 0xd000_0000] { #expect(memoryBus.read(address: base, width: .byte) == nil) }
    #expect(model.base.withLock { $0 } == nil, "the last notification must tell the model that its BAR has no address")
  }

  @Test func `a function revoked during moves of its BAR leaves no region behind`() throws {
    for _ in 0..<50 {
      let (function, model) = try make()
      let ends = SharedInteger()
      let movers = (0..<2).map { number in
        TestThread {
          var at = UInt32(number)
          while ends.value == 0 {
            at = (at + 2) % 16
            function.write32(0x10, 0xc000_0000 + at << 12)
          }
        }
      }
      function.revoke()
      ends.increment()
      for mover in movers { mover.join() }
      for page: UInt64 in 0..<16 {
        #expect(memoryBus.read(address: Self.base + page << 12, width: .byte) == nil)
      }
      #expect(model.base.withLock { $0 } == nil)
    }
  }

  @Test func `a device that was hidden behind a BAR is notified when the BAR's function is revoked`() throws {
    let (function, _) = try make()
    let hidden = HiddenDevice()
    _ = memoryBus.attach(hidden, at: Self.base, size: 0x1000, priority: .movable)
    function.refuse()
    #expect(memoryBus.read(address: Self.base, width: .byte) == 0x77)
    #expect(hidden.changes.value == 0, "refuse must not notify: a notification may take locks and call the host")
    function.revoke()
    #expect(hidden.changes.value == 1)
  }

  // MARK: Interrupts

  @Test func `a refused function sends no interrupt`() throws {
    let router = RecordingRouter()
    let (function, _) = try make(interrupts: router, msix: true)
    function.setINTx(true)
    #expect(line.asserted)
    memoryBus.write(address: Self.base + 0x800, width: .quadword, value: 0xfee0_0000)
    memoryBus.write(address: Self.base + 0x808, width: .quadword, value: 0x41)
    function.refuse()
    #expect(!line.asserted)
    function.setINTx(false)
    function.setINTx(true)
    #expect(!line.asserted)
    function.msix?.signal(0)
    function.revoke()
    function.msix?.signal(0)
    #expect(router.messages.isEmpty)
  }

  @Test func `a write of the MSI-X table in flight leaves no interrupt route`() throws {
    let router = GatedRouter()
    let (function, _) = try make(interrupts: router, msix: true)
    function.write16(EverythingOffset.msix + 2, 0x8000)
    memoryBus.write(address: Self.base + 0x800, width: .quadword, value: 0xfee0_0000)
    router.isGated.value = 1
    let access = TestThread { [memoryBus] in
      memoryBus.write(address: Self.base + 0x808, width: .quadword, value: 0x41)
    }
    router.entered.wait()
    function.refuse()
    revokeWaits(for: function) {
      router.isGated.value = 0
      router.mayLeave.signal()
    }
    access.join()
    #expect(router.messages.withLock { $0.values.allSatisfy { $0 == nil } })
  }

  // MARK: Workers, requests, timers

  @Test func `a refused function's workers do nothing, and its doorbells are removed with revoke`() throws {
    let (function, _) = try make()
    let served = SharedInteger()
    let worker = function.environment.makeWorker(name: "queue") { served.increment() }
    let host = try #require(workers.workers.last)
    worker.setDoorbell(at: 0x1000)
    worker.wake()
    #expect(host.doorbell == 0x1000 && served.value == 1)
    function.refuse()
    #expect(host.doorbell == 0x1000 && !host.stopped)
    // The host wakes the worker after a doorbell write that came through the kernel.
    host.wake()
    #expect(served.value == 1)
    worker.setDoorbell(at: 0x2000)
    worker.wake()
    // The host wakes the worker after a doorbell write that came through the kernel.
    host.wake()
    #expect(host.doorbell == nil && served.value == 1)
    function.revoke()
    #expect(host.stopped && host.doorbell == nil)
  }

  @Test func `refuse does not wait for a doorbell that is being set, and the doorbell does not stay`() throws {
    let source = GatedDoorbellSource()
    let (function, _) = try make(workers: source)
    let worker = function.environment.makeWorker(name: "queue") {}
    let setting = TestThread { worker.setDoorbell(at: 0x1000) }
    source.worker.entered.wait()
    function.refuse()
    source.worker.mayLeave.signal()
    setting.join()
    #expect(source.worker.doorbell.withLock { $0 } == nil)
    function.revoke()
  }

  @Test(
    "revoke waits for a request in flight, and refuse does not",
    arguments: ["port", "direct port", "request port", "translated"])
  func requests(kind: String) throws {
    let (function, _) = try make()
    let port: any DMAPort =
      switch kind {
      case "port": function.environment.makePort()
      case "direct port": function.environment.makeDirectPort()
      case "request port": function.environment.makeRequestPort().dmaPort(for: nil)
      default: function.environment.makeRequestPort().translatedPort
      }
    let phase = port.beginRequest()
    function.refuse()
    #expect(throws: DMAError.self) { try port.loadUInt32(at: 0) }
    revokeWaits(for: function) { port.endRequest(phase) }
  }

  @Test func `after refuse a late timer calls nothing, and revoke waits for a call in progress`() throws {
    let (function, _) = try make()
    let host = HandTimer()
    let timer = function.environment.timer(host)
    let calls = SharedInteger()
    let entered = TestSemaphore()
    let mayLeave = TestSemaphore()
    timer.start(afterMilliseconds: 1) {
      calls.increment()
      entered.signal()
      mayLeave.wait()
    }
    let firing = TestThread { host.fire() }
    entered.wait()
    timer.start(afterMilliseconds: 1) { calls.increment() }
    function.refuse()
    host.fire()
    #expect(calls.value == 1)
    timer.start(afterMilliseconds: 1) { calls.increment() }
    host.fire()
    #expect(calls.value == 1)
    revokeWaits(for: function) { mayLeave.signal() }
    firing.join()
  }

  @Test func `revoke waits for a remote's miss in flight, and then disconnects the remote`() throws {
    let remapper = RemoteRemapper(memory)
    let (function, _) = try make(remapper: remapper)
    let first = try #require(function.environment.connect(NoRemote()) as? RecordingRemotePort)
    first.disconnect()
    let port = try #require(function.environment.connect(NoRemote()) as? RecordingRemotePort)
    let phase = port.inFlight.begin()
    function.refuse()
    #expect(port.isConnected)
    revokeWaits(for: function) {
      #expect(port.isConnected)
      port.inFlight.end(phase)
    }
    #expect(!port.isConnected)
    #expect(first.disconnections.value == 1, "a port that was disconnected before is no longer recorded")
  }

  @Test func `a remote loses its mappings with Bus Master Enable, and by a reset`() throws {
    let remapper = RemoteRemapper(memory)
    let (function, _) = try make(remapper: remapper)
    let port = try #require(function.environment.connect(NoRemote()) as? RecordingRemotePort)
    function.command([.memorySpaceEnable, .busMasterEnable])
    #expect(port.losses.value == 0)
    function.command([.memorySpaceEnable])
    #expect(port.losses.value == 1)
    function.command([.memorySpaceEnable, .busMasterEnable])
    #expect(port.losses.value == 1)
    function.reset()
    #expect(port.losses.value == 2)
    function.revoke()
  }

  @Test func `a remote below a port loses its mappings when the port is renumbered or stops forwarding`() throws {
    let routes = BusRoutes(root: root)
    let environment = PCIEnvironment(
      memoryBus: memoryBus, ioBus: AddressBus(), memory: memory, remapper: RemoteRemapper(memory),
      interrupts: RecordingRouter(), workers: workers, makeParking: { [parking] in parking })
    let port = RootPort(
      ExpressPort(portNumber: 1, slotNumber: 1), environment: environment,
      address: RequesterID(bus: 0, device: 3, function: 0), routes: routes)
    try root.add(port.function)
    let below = Function(.plain, at: RequesterID(rawValue: 0), environment: environment.below(port))
    below.install(RecordingModel())
    try port.bus.add(below)
    let remote = try #require(below.environment.connect(NoRemote()) as? RecordingRemotePort)
    port.function.command([.busMasterEnable])
    below.command([.busMasterEnable])
    let before = remote.losses.value
    port.function.write32(0x18, 0x0002_0200)
    #expect(remote.losses.value == before + 1 && below.requester.id.bus == 2)
    port.function.command([])
    #expect(remote.losses.value == before + 2)
  }

  @Test func `without an IOMMU no remote is connected`() throws {
    let (function, _) = try make()
    #expect(function.environment.connect(NoRemote()) == nil)
    function.revoke()
  }

  // MARK: Order

  @Test func `revoke ends requests, then workers, then the board's resources, then the model`() throws {
    let log = Notes<String>()
    let (function, model) = try make(workers: LoggingWorkers(log))
    _ = function.environment.makeWorker(name: "queue") {}
    function.environment.onStop { log.add("stop") }
    function.environment.onRelease { log.add("release 1") }
    function.environment.onRelease { log.add("release 2") }
    model.log.withLock { $0 = { log.add($0) } }
    let clock = SharedInteger()
    let times = function.revoke {
      clock.increment()
      return UInt64(clock.value * clock.value)
    }
    #expect(
      log.all == ["endRequests", "worker", "stop", "release 2", "release 1", "placed nowhere", "released"])
    // The clock returned 1, 4, 9 and 16.
    #expect(times.refuse == 3 && times.drain == 5 && times.release == 7)
    #expect(function.revoke() == RevocationTimes())
  }

  @Test func `revoking a port first revokes the functions below it`() throws {
    let routes = BusRoutes(root: root)
    let environment = PCIEnvironment(
      memoryBus: memoryBus, ioBus: AddressBus(), memory: memory, remapper: DirectRemapper(memory: memory),
      interrupts: RecordingRouter(), workers: workers, makeParking: { [parking] in parking })
    let port = RootPort(
      ExpressPort(portNumber: 1, slotNumber: 1), environment: environment,
      address: RequesterID(bus: 0, device: 3, function: 0), routes: routes)
    try root.add(port.function)
    let below = Function(.plain, at: RequesterID(rawValue: 0), environment: environment.below(port))
    let model = GatedModel()
    below.install(model)
    try port.bus.add(below)
    let worker = below.environment.makeWorker(name: "queue") {}
    let isLast = SharedInteger()
    below.environment.onRelease { isLast.value = routes.ports.count }
    worker.wake()
    port.function.revoke()
    #expect(model.releases.value == 1 && isLast.value == 1 && port.bus.isEmpty && routes.ports.isEmpty)
  }
}

// MARK: - Test objects

/// A parking place that counts the threads that park.
private final class WatchedParking: Parking {
  let sleepers = SharedInteger()
  private let permits = TestSemaphore()

  func park() {
    sleepers.increment()
    permits.wait()
  }

  func unpark() { permits.signal() }
}

/// A device whose accesses wait until the test releases them.
private final class GatedModel: FunctionModel {
  let entered = TestSemaphore()
  let mayLeave = TestSemaphore()
  let accesses = SharedInteger()
  let configurationWrites = SharedInteger()
  let resets = SharedInteger()
  let ends = SharedInteger()
  let releases = SharedInteger()
  let blocksConfiguration = SharedInteger()
  let blocksPlacing = SharedInteger()
  let onWrite = Mutex<(@Sendable () -> Void)?>(nil)
  let base = Mutex<UInt64?>(nil)
  let log = Mutex<(@Sendable (String) -> Void)?>(nil)

  private func wait() {
    entered.signal()
    mayLeave.wait()
  }

  func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    accesses.increment()
    if blocksPlacing.value == 0 { wait() }
    return 0x55
  }

  func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) { onWrite.withLock { $0 }?() }

  func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    configurationWrites.increment()
    if blocksConfiguration.value == 1 { wait() }
  }

  func placed(bar: Int, at new: UInt64?, visible parts: [Range<UInt64>]) {
    if new != nil, blocksPlacing.value == 1 { wait() }
    base.withLock { $0 = new }
    if new == nil { log.withLock { $0 }?("placed nowhere") }
  }

  func reset() { resets.increment() }

  func endRequests() {
    ends.increment()
    log.withLock { $0 }?("endRequests")
  }

  func released() {
    releases.increment()
    log.withLock { $0 }?("released")
  }
}

private final class HiddenDevice: BusDevice {
  let changes = SharedInteger()

  func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0x77 }
  func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
  func visiblePartsChanged() { changes.increment() }
}

/// Routes whose message changes only when the test allows it.
private final class GatedRouter: InterruptRouter {
  let entered = TestSemaphore()
  let mayLeave = TestSemaphore()
  let isGated = SharedInteger()
  let messages = Mutex<[Int: InterruptMessage?]>([:])
  private let count = SharedInteger()

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    count.increment()
    return Route(self, count.value)
  }

  private final class Route: InterruptRoute {
    private let router: GatedRouter
    private let number: Int

    init(_ router: GatedRouter, _ number: Int) {
      self.router = router
      self.number = number
    }

    func set(_ message: InterruptMessage?) {
      if message != nil, router.isGated.value == 1 {
        router.entered.signal()
        router.mayLeave.wait()
      }
      router.messages.withLock { $0[number] = .some(message) }
    }

    func signal() {}
  }
}

/// One worker, whose doorbell is set only when the test allows it.
private final class GatedDoorbellSource: QueueWorkerSource {
  final class Worker: QueueWorker {
    let entered = TestSemaphore()
    let mayLeave = TestSemaphore()
    let doorbell = Mutex<UInt64?>(nil)

    func wake() {}
    func setDoorbell(at address: UInt64?) {
      if address != nil {
        entered.signal()
        mayLeave.wait()
      }
      doorbell.withLock { $0 = address }
    }
    func stop() {}
  }

  let worker = Worker()

  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker { worker }
}

private final class LoggingWorkers: QueueWorkerSource {
  private final class Worker: QueueWorker {
    let log: Notes<String>
    init(_ log: Notes<String>) { self.log = log }
    func wake() {}
    func setDoorbell(at address: UInt64?) {}
    func stop() { log.add("worker") }
  }

  private let log: Notes<String>
  init(_ log: Notes<String>) { self.log = log }
  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker { Worker(log) }
}

/// A timer that fires when the test calls `fire`.
private final class HandTimer: OneShotTimer {
  private let handler = Mutex<(@Sendable () -> Void)?>(nil)

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    self.handler.withLock { $0 = handler }
  }

  func fire() { handler.withLock { $0.take() }?() }
}

/// A remapper that connects remotes, and makes direct ports.
private final class RemoteRemapper: DMARemapper {
  private let direct: DirectRemapper

  init(_ memory: HeapMemory) { direct = DirectRemapper(memory: memory) }

  func makePort(for requester: Requester) -> any DMAPort { direct.makePort(for: requester) }
  func connect(_ remote: any RemoteIOTLB, for requester: Requester) -> (any RemoteDMAPort)? { RecordingRemotePort() }
}

private final class NoRemote: RemoteIOTLB {
  var asksAgainToWrite: Bool { true }
  func invalidate(_ ranges: [DMARange], number: UInt64) -> RemoteInvalidation { .done }
  func cutOff() {}
}

private final class RecordingRemotePort: RemoteDMAPort {
  let inFlight = RequestsInFlight()
  let losses = SharedInteger()
  let disconnections = SharedInteger()

  var isConnected: Bool { disconnections.value == 0 }
  func translate(
    _ address: UInt64, for access: DMAAccess, recordsFault: Bool, _ install: (RemoteMapping) -> Void
  ) throws(DMAError) {
    throw .disabled
  }
  func complete(_ number: UInt64) {}
  func forgetAll() { losses.increment() }
  func noteUnclaimed() {}
  func disconnect() { disconnections.increment() }
}
