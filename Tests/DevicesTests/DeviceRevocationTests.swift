import Glibc
import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

@testable import Devices

/// Checks that devices of every type end in the same way, whatever they are doing.
@Suite struct DeviceRevocationTests {
  enum DeviceType: CaseIterable {
    case edu
    case iommuTestDevice
    case dmaEngine
    case block
    case entropy
    case network
  }

  private static let address = RequesterID(bus: 0, device: 4, function: 0)

  private static func make(_ type: DeviceType, _ environment: PCIEnvironment) throws -> any FunctionModel & Described {
    switch type {
    case .edu: Edu(mask: .max, environment: environment, address: address)
    case .iommuTestDevice: IOMMUTestDevice(environment: environment, address: address)
    case .dmaEngine: DMAEngine(environment: environment, address: address)
    case .block:
      VirtioPCI(
        device: try VirtioBlock(
          options: VirtioBlockParameters(),
          backend: MemoryBackend(memory: HeapMemory(size: 0x1000), content: [UInt8](repeating: 0, count: 4096))),
        options: VirtioOptions(), environment: environment, address: address)
    case .entropy:
      VirtioPCI(
        device: VirtioEntropy(source: GatedSource()), options: VirtioOptions(), environment: environment,
        address: address)
    case .network:
      VirtioPCI(
        device: try VirtioNet(
          parameters: VirtioNetParameters(), backend: RecordingNetwork(memory: HeapMemory(size: 0x1000))),
        options: VirtioOptions(), environment: environment, address: address)
    }
  }

  private static func base(of bar: BaseAddressRegister) -> UInt64 { 0xc000_0000 + UInt64(bar.index) << 24 }

  /// Puts a function on a bus, places its BARs and enables bus mastering.
  private static func plug(_ function: Function, _ bus: Bus) throws {
    try bus.add(function)
    for bar in function.description.baseAddressRegisters { function.place(bar, at: base(of: bar)) }
    function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 6)
  }

  /// Revokes a function on another thread and checks that this waits for what is in flight.
  private static func revokeWaits(for function: Function, until end: () -> Void) {
    let isRevoked = SharedInteger()
    let thread = TestThread {
      function.revoke()
      isRevoked.increment()
    }
    // This is enough time for a revocation that does not wait.
    usleep(50_000)
    #expect(isRevoked.value == 0, "something is in flight")
    end()
    thread.join()
    #expect(isRevoked.value == 1)
  }

  @Test("a refused device no longer answers, and a revoked one is released", arguments: DeviceType.allCases)
  func gone(type: DeviceType) throws {
    let board = TestBoard()
    let bus = Bus(number: 0)
    weak var released: (any FunctionModel)?
    do {
      let model = try Self.make(type, board.environment)
      released = model
      let function = model.function
      try Self.plug(function, bus)
      let bars = function.description.baseAddressRegisters
      for bar in bars { #expect(board.memoryBus.read(address: Self.base(of: bar), width: .doubleword) != nil) }
      let isVirtio = [.block, .entropy, .network].contains(type)
      #expect(isVirtio == board.workers.workers.contains { $0.doorbell != nil })

      function.refuse()
      for bar in bars { #expect(board.memoryBus.read(address: Self.base(of: bar), width: .doubleword) == nil) }
      #expect(bus.isEmpty && !function.requester.busMasterEnable)
      #expect(function.readConfiguration(offset: 0, width: .doubleword) == 0xffff_ffff)
      #expect(board.workers.workers.allSatisfy { !$0.stopped })

      function.revoke()
      #expect(board.workers.workers.allSatisfy { $0.doorbell == nil && $0.stopped })
    }
    #expect(released == nil)
  }

  @Test("a page in flight delays revoke, but not refuse", arguments: [DeviceType.edu, .iommuTestDevice, .dmaEngine])
  func requests(type: DeviceType) throws {
    let memory = GatedMemory(size: 1 << 20)
    let memoryBus = AddressBus()
    let model = try Self.make(
      type,
      PCIEnvironment(
        memoryBus: memoryBus, ioBus: AddressBus(), memory: memory, remapper: DirectRemapper(memory: memory),
        interrupts: RecordingRouter(), workers: ThreadedWorkerSource(), makeParking: { SemaphoreParking() }))
    let function = model.function
    try Self.plug(function, Bus(number: 0))
    let registers: [(UInt64, UInt64)] =
      switch type {
      case .edu: [(0x80, 0x40000), (0x88, 0x4000), (0x90, 16), (0x98, 3)]
      case .dmaEngine: [(0x20, 0x4000), (0x28, 0x4000), (0x10, 2)]
      default: [(0x04, 0x4000), (0x08, 0), (0x1c, 0x4000), (0x20, 0), (0x0c, 0x2000), (0x14, 1)]
      }
    for (offset, value) in registers {
      memoryBus.write(address: 0xc000_0000 + offset, width: type == .edu ? .quadword : .doubleword, value: value)
    }
    // iommu-testdev does its transfer within a read.
    let access = TestThread {
      if type == .iommuTestDevice { _ = memoryBus.read(address: 0xc000_0000, width: .doubleword) }
    }
    #expect(eventually { memory.waiting == 1 })
    function.refuse()
    Self.revokeWaits(for: function) { memory.open() }
    access.join()
    #expect(memory.waiting == 1, "only the page in flight was written")
  }

  @Test func `a disk's request in flight delays revoke, but not refuse`() throws {
    var disk = try TestDisk(sectors: 16384, workers: ThreadedWorkerSource())
    let entered = Shared(false)
    let leave = Shared(false)
    disk.backend.onRead {
      entered.value = true
      _ = eventually { leave.value }
    }
    // 8 MiB: two pieces.
    let parts = (0..<32).map { _ in DriverQueue.Buffer.writable(TestDisk.data, 256 << 10) }
    #expect(try disk.request(0, parts) == nil)
    #expect(eventually { entered.value })
    disk.pci.function.refuse()
    Self.revokeWaits(for: disk.pci.function) { leave.value = true }
    #expect(disk.backend.operations.count == 1, "the second piece was never read")
  }

  @Test func `an entropy request in flight delays revoke, but not refuse`() throws {
    let source = GatedSource()
    var (pci, driver, queue) = try Self.entropy(VirtioEntropy(source: source), workers: ThreadedWorkerSource())
    queue.submit([.writable(0x8_0000, 16)])
    try driver.notify(0)
    source.entered.wait()
    pci.function.refuse()
    Self.revokeWaits(for: pci.function) { source.mayLeave.signal() }
    #expect(queue.takeUsed().isEmpty)
  }

  @Test func `a packet in flight delays revoke, but not refuse`() throws {
    var net = try TestNetwork(workers: ThreadedWorkerSource())
    let entered = Shared(false)
    let leave = Shared(false)
    net.backend.onSend {
      entered.value = true
      _ = eventually { leave.value }
    }
    net.queue(TestNetwork.frame())
    net.queue(TestNetwork.frame())
    try net.driver.notify(1)
    #expect(eventually { entered.value })
    net.pci.function.refuse()
    Self.revokeWaits(for: net.pci.function) { leave.value = true }
    #expect(net.backend.sent.count == 1, "the second packet was never sent")
    let receiveCalls = net.backend.receiveCalls
    net.backend.deliver(TestNetwork.frame())
    net.backend.wakeSender()
    // This is enough time for a worker that still runs.
    usleep(20_000)
    #expect(net.backend.receiveCalls == receiveCalls && net.backend.sent.count == 1)
  }

  @Test func `the rate limit's timer takes no entropy for a refused device`() throws {
    let source = GatedSource()
    source.mayLeave.signal()
    source.mayLeave.signal()
    let timer = HandTimer()
    var (pci, driver, queue) = try Self.entropy(
      VirtioEntropy(source: source, limit: EntropyLimit(bytes: 1, period: 10, timer: timer)), workers: nil)
    queue.submit([.writable(0x8_0000, 16)])
    queue.submit([.writable(0x8_1000, 16)])
    try driver.notify(0)
    #expect(source.takes.value == 1)
    pci.function.refuse()
    timer.fire()
    #expect(source.takes.value == 1)
    pci.function.revoke()
  }

  private static func entropy(
    _ device: VirtioEntropy, workers: (any QueueWorkerSource)?
  ) throws -> (VirtioPCI, TestDriver, DriverQueue) {
    let board = TestBoard(workers: workers)
    let pci = VirtioPCI(device: device, options: VirtioOptions(), environment: board.environment, address: address)
    board.plug(pci)
    let driver = TestDriver(pci, on: board)
    try driver.negotiate()
    let queue = try driver.setUp(queue: 0, at: 0x1_0000)
    try driver.start()
    return (pci, driver, queue)
  }
}

// MARK: - Test objects

/// A device of any type, with its function.
protocol Described { var function: Function { get } }
extension Edu: Described {}
extension IOMMUTestDevice: Described {}
extension DMAEngine: Described {}
extension VirtioPCI: Described {}

/// A source that gives bytes once the test allows it.
private final class GatedSource: Devices.EntropySource {
  let entered = TestSemaphore()
  let mayLeave = TestSemaphore()
  let takes = SharedInteger()

  func take(_ count: Int, into bytes: inout [UInt8]) -> Int {
    takes.increment()
    entered.signal()
    mayLeave.wait()
    return count
  }

  func onReady(_ handler: @escaping @Sendable () -> Void) {}
}

/// A timer that the test fires.
private final class HandTimer: OneShotTimer {
  private let handler = Mutex<(@Sendable () -> Void)?>(nil)

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    self.handler.withLock { $0 = handler }
  }

  func fire() { handler.withLock { $0.take() }?() }
}
