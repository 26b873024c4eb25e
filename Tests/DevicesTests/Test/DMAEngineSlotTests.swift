import Glibc
import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// Checks the job slots of `dma-engine`, as `DMAEngineSlot` describes them to a driver: several jobs at once, their
/// completion records, their errors, their page requests and their end.
@Suite("dma-engine's job slots", .timeLimit(.minutes(5)))
struct DMAEngineSlotTests {
  let root = ScriptedRoot(memory: HeapMemory(size: 1 << 20))
  let router = RecordingRouter()
  let device: DMAEngine

  static let source: UInt64 = 0x7000_0000
  static let destination: UInt64 = 0x7800_0000
  static let record: UInt64 = 0x5000_0000
  static let copy: UInt64 = 3
  static let withPASID: UInt64 = 1 << 4
  static let deviceTLB: UInt64 = 1 << 8
  static let requestsPages: UInt64 = 1 << 10
  static let interrupts: UInt64 = 1 << 11
  static let writesRecord: UInt64 = 1 << 15
  /// A copy as a driver for shared virtual memory makes it.
  static let shared = copy | withPASID | deviceTLB | requestsPages

  init() {
    let environment = PCIEnvironment(
      memoryBus: AddressBus(), ioBus: AddressBus(), memory: root.memory, remapper: root, interrupts: router,
      workers: InlineWorkerSource(), makeParking: { SemaphoreParking() })
    device = DMAEngine(environment: environment, address: RequesterID(bus: 0, device: 4, function: 0))
    enable()
  }

  func enable(allocation: UInt64 = 32) {
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
    control(AddressTranslationControl.id, 6, 0x8000)
    control(PageRequestControl.id, 12, allocation)
    control(PageRequestControl.id, 4, 1)
    control(ProcessAddressSpaceControl.id, 6, 7)
  }

  func control(_ id: UInt16, _ offset: Int, _ value: UInt64) {
    guard let at = device.function.extendedCapability(id) else { return }
    device.function.writeConfiguration(offset: at + offset, width: .word, value: value)
  }

  func word(_ id: UInt16, _ offset: Int) -> UInt64 {
    guard let at = device.function.extendedCapability(id) else { return .max }
    return device.function.readConfiguration(offset: at + offset, width: .word)
  }

  func at(_ slot: Int, _ offset: UInt64) -> UInt64 { 0x400 + 0x40 * UInt64(slot) + offset }
  func read(_ offset: UInt64, _ width: AccessWidth = .doubleword) -> UInt64 {
    device.readRegion(bar: 0, offset: offset, width: width)
  }
  func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .doubleword) {
    device.writeRegion(bar: 0, offset: offset, width: width, value: value)
  }

  func status(_ slot: Int) -> UInt64 { read(at(slot, 0x04)) }
  func isBusy(_ slot: Int) -> Bool { status(slot) & 1 != 0 }
  func result(_ slot: Int) -> UInt64 { status(slot) >> 8 & 0xff }

  /// Starts a job.
  func start(
    _ slot: Int, _ command: UInt64 = shared, pasid: UInt64 = 0, source: UInt64 = source,
    destination: UInt64 = destination, count: UInt64 = 8, record: UInt64 = record
  ) {
    write(at(slot, 0x08), source, .quadword)
    write(at(slot, 0x10), destination, .quadword)
    write(at(slot, 0x18), count, .quadword)
    write(at(slot, 0x20), pasid)
    write(at(slot, 0x28), record, .quadword)
    write(at(slot, 0x00), command)
  }

  func respond(_ request: PageRequest?, _ code: PageGroupResponse.Code = .success) {
    guard let request else { return }
    root.cache?.receive(PageGroupResponse(code: code, groupIndex: request.groupIndex, pasid: request.prefix?.pasid))
  }

  var requests: [PageRequest] { root.state.withLock { $0.pageRequests } }

  func mapBoth() {
    root.map(Self.source, to: 0x4000)
    root.map(Self.destination, to: 0x8000)
    root.map(Self.record, to: 0xc000)
    root.memory.store([1, 2, 3, 4, 5, 6, 7, 8], at: 0x4010)
  }

  @Test("the engine has version 2, 16 slots and 16 vectors")
  func identity() {
    #expect(read(0x04) == 2)
    #expect(read(0x80) == 16)
    #expect(device.function.msix?.layout.vectorCount == 16)
    #expect(read(at(15, 0x3c)) == 0)
    // After the last slot there is nothing.
    write(0x800, Self.copy)
    #expect(read(0x800) == 0)
  }

  @Test("a job copies under its PASID and writes its completion record")
  func job() {
    mapBoth()
    start(
      5, Self.shared | Self.writesRecord, pasid: 0xabcde, source: Self.source + 0x10,
      destination: Self.destination + 0x20, record: Self.record + 0x40)
    #expect(status(5) == 1 << 8)
    #expect(read(at(5, 0x30), .quadword) == 8)
    #expect(read(at(5, 0x38), .quadword) == 0)
    #expect(root.memory.copy(0x8020, count: 9) == [1, 2, 3, 4, 5, 6, 7, 8, 0])
    #expect(root.takeAsked().map(\.prefix?.pasid) == [0xabcde, 0xabcde])
    // Result 1 and slot 5, 8 bytes, no fault.
    #expect(root.memory.loadUInt64(at: 0xc040) == 1 | 5 << 32)
    #expect(root.memory.loadUInt64(at: 0xc048) == 8)
    #expect(root.memory.loadUInt64(at: 0xc050) == 0)
    let record = root.takeAccesses().suffix(3)
    #expect(record.map(\.address) == [Self.record + 0x48, Self.record + 0x50, Self.record + 0x40])
    #expect(record.allSatisfy { $0.prefix == nil && $0.kind == .untranslated })
  }

  @Test("JOBS DONE tells which jobs have ended, until software clears its bits")
  func jobsDone() {
    mapBoth()
    start(0)
    start(9)
    start(15, 0)
    #expect(read(0x84) == 1 | 1 << 9 | 1 << 15)
    write(0x84, 1 << 9)
    #expect(read(0x84) == 1 | 1 << 15)
  }

  @Test("a failed job tells its result and the address of the access that failed")
  func fault() {
    mapBoth()
    root.memory.storeUInt64(0, at: 0xc000)
    start(2, Self.copy | Self.withPASID | Self.writesRecord, source: Self.source + 0xff0, count: 0x20)
    #expect(result(2) == 5)
    #expect(read(at(2, 0x30), .quadword) == 0x10)
    #expect(read(at(2, 0x38), .quadword) == Self.source + 0x1000)
    #expect(root.memory.loadUInt64(at: 0xc000) == 5 | 2 << 32)
    #expect(root.memory.loadUInt64(at: 0xc008) == 0x10)
    #expect(root.memory.loadUInt64(at: 0xc010) == Self.source + 0x1000)
    // A destination without write access.
    root.map(Self.destination, to: 0x8000, .read)
    start(2, Self.copy | Self.withPASID | Self.deviceTLB)
    #expect(result(2) == 9)
    #expect(read(at(2, 0x38), .quadword) == Self.destination)
    // The job after a failed one begins without its fault.
    root.map(Self.destination, to: 0x8000)
    start(2)
    #expect(status(2) == 1 << 8)
    #expect(read(at(2, 0x38), .quadword) == 0)
  }

  @Test("a completion record that does not reach memory is told in STATUS")
  func lostRecord() {
    mapBoth()
    for record in [Self.record + 8, Self.record + 0x1000, 0xfee0_0000] {
      start(1, Self.copy | Self.writesRecord, record: record)
      #expect(status(1) == 1 << 16 | 1 << 8)
    }
    start(1, Self.copy | Self.writesRecord)
    #expect(status(1) == 1 << 8)
  }

  @Test("COMMAND of a slot takes copies only, and no bits without a meaning")
  func badCommands() {
    mapBoth()
    for command: UInt64 in [0, 1, 2, 4, 5, 6, 7, 3 | 1 << 5, 3 | 1 << 10, 3 | 1 << 7, 3 | 1 << 9, 3 | 1 << 12]
      + [3 | 1 << 14, 3 | 1 << 16, 3 | 1 << 31]
    {
      start(3, command)
      #expect(result(3) == 2, "\(String(command, radix: 16))")
    }
    start(3, Self.copy, count: 1 << 30 | 1)
    #expect(result(3) == 3)
    start(3, Self.copy, source: .max - 3)
    #expect(result(3) == 6)
    control(ProcessAddressSpaceControl.id, 6, 0)
    start(3)
    #expect(result(3) == 4)
  }

  @Test("jobs wait for their own pages while others run, and each response continues its own job")
  func several() {
    root.map(Self.destination, to: 0x8000)
    for slot in 0..<4 { start(slot, pasid: 100 + UInt64(slot), source: Self.source + UInt64(slot) << 12) }
    #expect((0..<4).allSatisfy(isBusy))
    #expect(requests.map { $0.prefix?.pasid } == [100, 101, 102, 103])
    #expect(requests.map(\.groupIndex) == [0x100, 0x110, 0x120, 0x130])
    #expect(requests.allSatisfy { $0.reads && !$0.writes && $0.isLastInGroup })
    // Another job runs meanwhile, and so does COMMAND.
    root.map(Self.source + 0x10000, to: 0x5000)
    start(7, source: Self.source + 0x10000)
    #expect(result(7) == 1)
    write(0x18, Self.source + 0x10000, .quadword)
    write(0x28, 8, .quadword)
    write(0x10, 1)
    #expect(read(0x0c) == 1 << 8)
    // The right group index with a wrong PASID continues no job.
    root.cache?.receive(PageGroupResponse(code: .success, groupIndex: 0x120, pasid: 100))
    #expect((0..<4).allSatisfy(isBusy))
    #expect(word(PageRequestControl.id, 6) & 2 != 0, "unexpected group index")
    root.map(Self.source + 0x2000, to: 0x6000)
    respond(requests[2])
    #expect(result(2) == 1)
    respond(requests[0], .invalidRequest)
    #expect(result(0) == 10)
    #expect(read(at(0, 0x38), .quadword) == Self.source)
    #expect(isBusy(1) && isBusy(3))
    respond(requests[3], .responseFailure)
    #expect(result(3) == 11)
    #expect(isBusy(1))
  }

  @Test("a job requests the page to write with write access, and continues after the response")
  func writeFault() {
    root.map(Self.source, to: 0x4000)
    root.map(Self.destination, to: 0x8000, .read)
    start(0)
    #expect(requests.map(\.address) == [Self.destination])
    #expect(requests.map(\.writes) == [true])
    root.map(Self.destination, to: 0x9000)
    respond(requests.last)
    #expect(result(0) == 1)
    #expect(read(0x58) == 1)
  }

  @Test("no more page requests are outstanding than software has allocated")
  func allocation() {
    enable(allocation: 2)
    root.map(Self.destination, to: 0x8000)
    for slot in 0..<5 { start(slot, source: Self.source + UInt64(slot) << 12) }
    #expect(requests.count == 2)
    for slot: UInt64 in 0..<5 { root.map(Self.source + slot << 12, to: 0x5000) }
    respond(requests[0])
    // The other jobs find their pages now, and request none.
    #expect((0..<5).map(isBusy) == [false, true, false, false, false])
    #expect(requests.count == 2)
    respond(requests[1])
    #expect(result(1) == 1)
  }

  @Test("a job that waits for an allocation goes on when software ends the command that has it")
  func endOfCommand() {
    enable(allocation: 1)
    // A page request, last in its group: the command waits for the response.
    write(0x10, 5 | 1 << 12 | 1 << 14)
    start(0)
    #expect(requests.count == 1)
    write(0x08, 1 << 8)
    #expect(requests.count == 2)
  }

  @Test("software ends a waiting job; the late response is not unexpected, and its group index stays in use until then")
  func ending() {
    start(4, pasid: 9)
    let first = requests.last
    write(at(4, 0x08), 0xdead, .quadword)
    #expect(read(at(4, 0x08), .quadword) == Self.source, "the registers of a running job do not change")
    write(at(4, 0x04), 2)
    #expect(status(4) == 12 << 8)
    #expect(read(0x84) == 1 << 4)
    // The next job of the slot uses another index.
    start(4, pasid: 9)
    #expect(requests.last?.groupIndex == 0x141)
    mapBoth()
    respond(first)
    #expect(isBusy(4))
    #expect(word(PageRequestControl.id, 6) & 2 == 0)
    respond(requests.last)
    #expect(result(4) == 1)
    #expect(isBusy(4) == false)
    // Without a job, the bit has no effect.
    write(at(4, 0x04), 2)
    #expect(status(4) == 1 << 8)
  }

  @Test("after 16 ended jobs without responses, a slot waits for one of them")
  func indices() {
    for _ in 0..<16 {
      start(0)
      write(at(0, 0x04), 2)
    }
    #expect(Set(requests.map(\.groupIndex)) == Set(0x100...0x10f))
    start(0)
    #expect(requests.count == 16)
    #expect(isBusy(0))
    respond(requests[3])
    #expect(requests.count == 17)
    #expect(requests.last?.groupIndex == 0x103)
    write(at(0, 0x04), 2)
    #expect(result(0) == 12)
  }

  @Test("PRI has stopped only when the last response has arrived, also for ended jobs")
  func stopped() {
    start(0)
    start(1)
    write(at(1, 0x04), 2)
    control(PageRequestControl.id, 4, 0)
    #expect(word(PageRequestControl.id, 6) & 0x100 == 0)
    respond(requests[0], .invalidRequest)
    #expect(word(PageRequestControl.id, 6) & 0x100 == 0)
    respond(requests[1], .invalidRequest)
    #expect(word(PageRequestControl.id, 6) & 0x100 != 0)
  }

  @Test("a reset of PRI fails the waiting jobs, and a function-level reset forgets them")
  func resets() {
    start(0)
    start(1)
    control(PageRequestControl.id, 4, 0)
    control(PageRequestControl.id, 4, 2)
    #expect([result(0), result(1)] == [11, 11])
    #expect(word(PageRequestControl.id, 6) & 0x100 != 0)
    enable()
    start(0)
    start(1)
    device.function.reset()
    #expect([status(0), status(1), read(0x84), read(at(0, 0x08))] == [0, 0, 0, 0])
    enable()
    mapBoth()
    start(0)
    #expect(result(0) == 1)
  }

  @Test("a long copy gives the other jobs turns")
  func turns() {
    for page: UInt64 in 0..<64 { root.map(Self.source + page << 12, to: 0x1000 * (page % 16)) }
    for page: UInt64 in 0..<64 { root.map(Self.destination + page << 12, to: 0x10000 + 0x1000 * (page % 16)) }
    let (device, root) = (self.device, self.root)
    // The second job starts during the first one's first access.
    root.state.withLock { state in
      state.onTranslate = {
        root.state.withLock { $0.onTranslate = nil }
        let slot: UInt64 = 0x440
        for (offset, value): (UInt64, UInt64) in [(0x08, Self.source), (0x10, Self.destination), (0x18, 0x40000)] {
          device.writeRegion(bar: 0, offset: slot + offset, width: .quadword, value: value)
        }
        device.state.withLock { _ = $0.write(slot, .doubleword, Self.copy | Self.withPASID | Self.deviceTLB) }
      }
    }
    start(0, Self.copy | Self.deviceTLB, count: 0x40000)
    #expect([result(0), result(1)] == [1, 1])
    let pasids = root.takeAsked().map { $0.prefix?.pasid }
    // Each turn is 16 pages: 32 translations. The second job joins after the first turn, with the next pass.
    let turns = stride(from: 0, to: pasids.count, by: 32).map { Set(pasids[$0..<min($0 + 32, pasids.count)]) }
    #expect(turns == [[nil], [nil], [0], [nil], [0], [nil], [0], [0]])
    #expect(pasids.count == 256)
  }

  @Test("a job whose pages software never stops invalidating goes on and can be ended")
  func endlessInvalidation() {
    mapBoth()
    let (device, root) = (self.device, self.root)
    let rounds = SharedInteger()
    root.state.withLock { state in
      state.onTranslate = {
        rounds.increment()
        if rounds.value == 100 { device.state.withLock { _ = $0.write(0x404, .doubleword, 2) } }
        root.cache?.invalidate(InvalidateRequest(tag: 0, pasid: nil, isGlobal: false, first: 0, last: .max))
      }
    }
    start(0)
    #expect(result(0) == 12)
    #expect(rounds.value >= 100)
  }

  @Test("a slot stays busy until the page in flight is written, also if software ends its job or resets the function")
  func drained() {
    for resets in [false, true] {
      let memory = GatedMemory(size: 1 << 20)
      let environment = PCIEnvironment(
        memoryBus: AddressBus(), ioBus: AddressBus(), memory: memory, remapper: DirectRemapper(memory: memory),
        interrupts: router, workers: ThreadedWorkerSource(), makeParking: { SemaphoreParking() })
      let device = DMAEngine(environment: environment, address: RequesterID(bus: 0, device: 4, function: 0))
      device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
      for (offset, value): (UInt64, UInt64) in [(0x448, 0x4000), (0x450, 0x8000), (0x458, 0x4000), (0x440, 3)] {
        device.writeRegion(bar: 0, offset: offset, width: .doubleword, value: value)
      }
      #expect(eventually { memory.waiting == 1 })
      let isDone = SharedInteger()
      let thread = TestThread {
        if resets {
          device.function.reset()
        } else {
          device.writeRegion(bar: 0, offset: 0x444, width: .doubleword, value: 2)
          _ = eventually { device.readRegion(bar: 0, offset: 0x444, width: .doubleword) & 1 == 0 }
        }
        isDone.increment()
      }
      // This is enough time for an end that does not wait.
      usleep(100_000)
      #expect(isDone.value == 0, "the page is still being written")
      memory.open()
      thread.join()
      #expect(memory.written == 0x1000, "the three other pages are not written")
      #expect(device.readRegion(bar: 0, offset: 0x444, width: .doubleword) == (resets ? 0 : 12 << 8))
      device.function.revoke()
    }
  }

  @Test("the interrupt follows the completion record, with the vector of the slot")
  func interrupt() {
    let table = device.function.description.baseAddressRegisters[1]
    device.function.place(table, at: 0xc000_0000)
    let bus = device.function.environment.memoryBus
    bus.write(address: 0xc000_00f0, width: .quadword, value: 0xfee0_1000)
    bus.write(address: 0xc000_00f8, width: .quadword, value: 0x55)
    device.function.writeConfiguration(offset: 0x42, width: .word, value: 0x8000)
    mapBoth()
    write(at(6, 0x24), 15)
    start(6, Self.copy | Self.interrupts | Self.writesRecord)
    #expect(router.messages == [InterruptMessage(address: 0xfee0_1000, data: 0x55)])
    start(6, Self.copy)
    #expect(router.messages.count == 1)
  }

  @Test("random writes to the slots do no harm", arguments: [1, 2, 3] as [UInt64])
  func hostile(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for page: UInt64 in 0..<16 { root.map(page << 12, to: page << 12, DMAAccess(rawValue: UInt8(page % 8))) }
    for _ in 0..<20000 {
      let value = random.next() >> (random.next() % 64)
      switch random.next() % 8 {
      case 0:
        root.cache?.invalidate(
          InvalidateRequest(tag: UInt8(value & 31), pasid: 3, isGlobal: false, first: 0, last: value))
      case 1:
        root.cache?.receive(
          PageGroupResponse(
            code: value & 0x200 == 0 ? .success : .invalidRequest, groupIndex: UInt16(value & 0x1ff),
            pasid: UInt32(value & 3)))
      case 2: start(Int(value & 15), Self.shared | value & 0x8800, pasid: value & 3, count: value & 0x3fff)
      case 3: write(at(Int(value & 15), 0x04), 2)
      case 4: device.function.writeConfiguration(offset: 0x100 + Int(value & 0x1e), width: .word, value: value >> 8)
      case 5: enable(allocation: value & 7)
      default: write(0x400 + random.next() % 0x400, value, AccessWidth.allCases[Int(random.next() % 4)])
      }
      _ = read(0x400 + random.next() % 0x400, .quadword)
    }
    device.function.reset()
    enable()
    mapBoth()
    start(0)
    #expect(result(0) == 1)
    device.function.revoke()
  }
}
