import Glibc
import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// Checks the interface that `DMAEngineRegisters` describes to a driver, and that a hostile driver does no harm.
@Suite("dma-engine", .timeLimit(.minutes(5)))
struct DMAEngineTests {
  let root = ScriptedRoot(memory: HeapMemory(size: 1 << 20))
  let router = RecordingRouter()
  let device: DMAEngine

  static let virtual: UInt64 = 0x7000_0000
  static let physical: UInt64 = 0x4000

  init() {
    let environment = PCIEnvironment(
      memoryBus: AddressBus(), ioBus: AddressBus(), memory: root.memory, remapper: root, interrupts: router,
      workers: InlineWorkerSource(), makeParking: { SemaphoreParking() })
    device = DMAEngine(environment: environment, address: RequesterID(bus: 0, device: 4, function: 0))
    enable()
  }

  func enable() {
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
    control(AddressTranslationControl.id, 6, 0x8000)
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

  func read(_ offset: UInt64, _ width: AccessWidth = .doubleword) -> UInt64 {
    device.readRegion(bar: 0, offset: offset, width: width)
  }
  func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .doubleword) {
    device.writeRegion(bar: 0, offset: offset, width: width, value: value)
  }

  var isBusy: Bool { read(0x0c) & 1 != 0 }
  var result: UInt64 { read(0x0c) >> 8 }

  /// Starts a command.
  @discardableResult
  func run(_ command: UInt64, source: UInt64 = 0, destination: UInt64 = 0, count: UInt64 = 0) -> UInt64 {
    write(0x18, source, .quadword)
    write(0x20, destination, .quadword)
    write(0x28, count, .quadword)
    write(0x10, command)
    return result
  }

  func fill(_ count: Int) -> [UInt8] {
    let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ 1) }
    for (index, byte) in bytes.enumerated() {
      device.writeRegion(bar: 2, offset: UInt64(index), width: .byte, value: UInt64(byte))
    }
    return bytes
  }

  @Test("the function shows its identity, BARs and capabilities")
  func identity() {
    func configuration(_ offset: Int) -> UInt64 {
      device.function.readConfiguration(offset: offset, width: .doubleword)
    }
    #expect(configuration(0) == 0x11e9_1234)
    #expect(configuration(8) == 0x0880_0001)
    for (offset, mask): (Int, UInt64) in [(0x10, 0xffff_f000), (0x14, 0xffff_f000), (0x18, 0xffff_0000)] {
      device.function.writeConfiguration(offset: offset, width: .doubleword, value: 0xffff_ffff)
      #expect(configuration(offset) == mask)
    }
    #expect(device.function.extendedCapabilityOffsets == [0x100, 0x108, 0x118])
    #expect(read(0) == 0x414d_444e)
    #expect(read(4) == 2)
    #expect(read(0, .quadword) == 0x2_414d_444e)
    #expect(read(0, .byte) == 0)
    #expect(read(2) == 0)
  }

  @Test("untranslated writes and reads cross pages, with the requested PASID prefix")
  func untranslated() throws {
    root.map(Self.virtual, to: Self.physical)
    root.map(Self.virtual + 0x1000, to: Self.physical + 0x5000)
    let bytes = fill(0x1800)
    write(0x14, 0x12345)
    #expect(run(2 | 1 << 4 | 1 << 5, destination: Self.virtual + 0x400, count: 0x1800) == 1)
    #expect(read(0x38) == 0x1800)
    #expect(root.memory.copy(Self.physical + 0x400, count: 0xc00) == Array(bytes[..<0xc00]))
    #expect(root.memory.copy(Self.physical + 0x5000, count: 0xc00) == Array(bytes[0xc00...]))
    let prefix = PASIDPrefix(pasid: 0x12345, isPrivileged: true)
    #expect(root.takeAccesses().map(\.prefix) == [prefix, prefix])

    write(0x30, 0x8000)
    #expect(run(1, source: Self.virtual + 0x400, count: 0x1800) == 1)
    for index in [0, 0xbff, 0xc00, 0x17ff] {
      #expect(device.readRegion(bar: 2, offset: UInt64(0x8000 + index), width: .byte) == UInt64(bytes[index]))
    }
    #expect(root.takeAccesses().allSatisfy { $0.prefix == nil && $0.access == .read && $0.kind == .untranslated })
    #expect(root.takeAsked().isEmpty)
  }

  @Test("execute requests are reads with the execute permission")
  func execute() {
    root.map(Self.virtual, to: Self.physical, [.read, .execute])
    #expect(run(1 | 1 << 4 | 1 << 6, source: Self.virtual, count: 8) == 1)
    #expect(root.takeAccesses().map(\.access) == [[.read, .execute]])
    root.map(Self.virtual, to: Self.physical, .read)
    #expect(run(1 | 1 << 4 | 1 << 6, source: Self.virtual, count: 8) == 5)
  }

  @Test("a copy stops before the first page it cannot access, and reports the bytes moved")
  func copy() {
    root.map(Self.virtual, to: Self.physical)
    root.map(Self.virtual + 0x10000, to: 0x10000)
    root.memory.store([1, 2, 3, 4], at: Self.physical + 0xff8)
    #expect(run(3, source: Self.virtual + 0xff8, destination: Self.virtual + 0x10000, count: 16) == 5)
    #expect(read(0x38) == 8)
    #expect(root.memory.copy(0x10000, count: 5) == [1, 2, 3, 4, 0])
    #expect(run(3, count: 1 << 30 | 1) == 3)
  }

  @Test("an address beyond memory and a function without bus mastering give their result codes")
  func unreachable() {
    root.map(Self.virtual, to: 0x1000_0000)
    #expect(run(1, source: Self.virtual, count: 4) == 6)
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x2)
    #expect(run(1, source: Self.virtual, count: 4) == 4)
  }

  @Test("with the device TLB, a page is translated once, and translated requests access it")
  func deviceTLB() {
    root.map(Self.virtual, to: Self.physical)
    #expect(run(2 | 1 << 8, destination: Self.virtual + 8, count: 8) == 1)
    #expect(root.takeAsked() == [.init(address: Self.virtual + 8, noWrite: false, prefix: nil)])
    #expect(
      root.takeAccesses() == [
        .init(kind: .translated, prefix: nil, address: Self.physical + 8, access: .write)
      ])
    #expect(read(0x78) == 1)
    #expect(run(1 | 1 << 8, source: Self.virtual, count: 0x1000) == 1)
    #expect(root.takeAsked().isEmpty)
    // Another PASID is another page.
    #expect(run(1 | 1 << 4 | 1 << 8, source: Self.virtual, count: 8) == 1)
    #expect(root.takeAsked().map(\.noWrite) == [true])
    #expect(read(0x78) == 2)
    #expect(read(0x7c) == 2)
    // Turning ATS off empties the device TLB.
    control(AddressTranslationControl.id, 6, 0)
    #expect(read(0x78) == 0)
    #expect(run(1 | 1 << 8, source: Self.virtual, count: 8) == 4)
  }

  @Test("each refusal of a translation has its result code, and an untranslated-only page is accessed untranslated")
  func answers() {
    #expect(run(1 | 1 << 8, source: Self.virtual, count: 8) == 9)
    root.map(Self.virtual, to: Self.physical, .read)
    #expect(run(2 | 1 << 8, destination: Self.virtual, count: 8) == 9)
    root.state.withLock { $0.pages[Self.virtual >> 12]?.isUntranslatedOnly = true }
    #expect(run(1 | 1 << 8, source: Self.virtual, count: 8) == 1)
    #expect(root.takeAccesses().last?.kind == .untranslated)
    root.state.withLock { $0.completion = .unsupportedRequest }
    #expect(run(4, source: Self.virtual) == 7)
    root.state.withLock { $0.completion = .completerAbort }
    #expect(run(4, source: Self.virtual) == 8)
  }

  @Test("the translate command shows the translation")
  func translate() {
    root.state.withLock {
      $0.completion = .success(
        DeviceTranslation(
          address: 0x8000_0020_0000, shift: 21, isReadable: true, isWritable: false, isExecutable: true,
          isPrivileged: true))
    }
    write(0x14, 5)
    #expect(run(4 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7, source: Self.virtual) == 1)
    #expect(read(0x40, .quadword) == 0x8000_0020_0000)
    #expect(read(0x48) == 0x150d)
    #expect(
      root.takeAsked() == [
        .init(
          address: Self.virtual, noWrite: true, prefix: PASIDPrefix(pasid: 5, isPrivileged: true, executes: true))
      ])
    #expect(read(0x78) == 0)
    #expect(run(4 | 1 << 8, source: Self.virtual) == 1)
    #expect(read(0x78) == 1)
  }

  @Test("a raw translated request sends its address without a translation request")
  func raw() {
    root.memory.store([9, 8, 7, 6], at: 0x9000)
    #expect(run(1 | 1 << 9, source: 0x9000, count: 4) == 1)
    #expect(device.readRegion(bar: 2, offset: 0, width: .doubleword) == 0x0607_0809)
    #expect(root.takeAsked().isEmpty)
    #expect(root.takeAccesses().map(\.kind) == [.translated])
  }

  func invalidate(
    _ tag: UInt8, pasid: UInt32? = nil, global: Bool = false, first: UInt64 = virtual, last: UInt64 = virtual | 0xfff
  ) {
    root.cache?.invalidate(InvalidateRequest(tag: tag, pasid: pasid, isGlobal: global, first: first, last: last))
  }

  @Test("an invalidation removes the pages that it names from the device TLB, and is counted and shown")
  func invalidations() {
    for page: UInt64 in 0..<4 { root.map(Self.virtual + page << 12, to: Self.physical) }
    write(0x14, 3)
    for prefix: UInt64 in [0, 1 << 4] {
      for page: UInt64 in 0..<4 { run(1 | prefix | 1 << 8, source: Self.virtual + page << 12, count: 1) }
    }
    #expect(read(0x78) == 8)
    invalidate(0)
    #expect(read(0x78) == 7)
    invalidate(1, pasid: 4, last: .max)
    #expect(read(0x78) == 7)
    invalidate(2, pasid: 3, last: Self.virtual | 0x1fff)
    #expect(read(0x78) == 5)
    #expect(read(0x5c) == 3)
    #expect(read(0x60, .quadword) == Self.virtual)
    #expect(read(0x68, .quadword) == Self.virtual | 0x1fff)
    #expect(read(0x70) == 0x8000_0003)
    invalidate(3, global: true, first: 0, last: .max)
    #expect(read(0x78) == 3)
    invalidate(4, first: 0, last: .max)
    #expect(read(0x78) == 0)
    #expect(root.state.withLock { $0.completed } == [1, 2, 4, 8, 16])
  }

  @Test("invalidations are completed at once, held until later, or completed with a wrong tag")
  func answering() {
    write(0x08, 1)
    invalidate(5)
    #expect(root.state.withLock { $0.completed } == [1 << 5])
    #expect(read(0x74) == 0)
    write(0x08, 2)
    invalidate(6)
    invalidate(31)
    #expect(root.state.withLock { $0.completed } == [1 << 5])
    #expect(read(0x74) == 2)
    write(0x08, 3)
    invalidate(7)
    #expect(root.state.withLock { $0.completed } == [1 << 5, 1 << 8])
    #expect(read(0x74) == 3)
    write(0x08, 1 << 9)
    #expect(root.state.withLock { $0.completed }.last == 1 << 6 | 1 << 31 | 1 << 7)
    #expect(read(0x74) == 0)
    write(0x08, 2)
    invalidate(9)
    device.function.reset()
    #expect(root.state.withLock { $0.completed }.last == 1 << 9, "a reset answers held invalidations")
    #expect(read(0x08) == 0)
  }

  @Test("a translation that an invalidation overtook is neither cached nor used")
  func overtaken() {
    root.map(Self.virtual, to: Self.physical)
    let root = self.root
    root.state.withLock { state in
      state.onTranslate = {
        // Once, the page's mapping changes, and its invalidation arrives while the translation is in flight.
        root.state.withLock { $0.onTranslate = nil }
        root.map(Self.virtual, to: 0x9000)
        root.cache?.invalidate(
          InvalidateRequest(tag: 0, pasid: nil, isGlobal: false, first: Self.virtual, last: Self.virtual | 0xfff))
      }
    }
    #expect(run(2 | 1 << 8, destination: Self.virtual, count: 8) == 1)
    #expect(root.takeAsked().count == 2)
    #expect(root.takeAccesses().map(\.address) == [0x9000])
  }

  @Test("a page request command waits for the response")
  func pageRequest() {
    write(0x14, 3)
    run(5 | 1 << 4 | 1 << 12 | 1 << 14 | 0x155 << 16, source: Self.virtual | 0x123)
    #expect(isBusy)
    #expect(
      root.state.withLock { $0.pageRequests } == [
        PageRequest(
          address: Self.virtual | 0x123, prefix: PASIDPrefix(pasid: 3), reads: true, writes: false,
          isLastInGroup: true, groupIndex: 0x155)
      ])
    // This is not the awaited response.
    root.cache?.receive(PageGroupResponse(code: .success, groupIndex: 1, pasid: 3))
    #expect(isBusy)
    #expect(word(PageRequestControl.id, 6) & 2 != 0, "unexpected group index")
    root.cache?.receive(PageGroupResponse(code: .success, groupIndex: 0x155, pasid: 3))
    #expect(!isBusy)
    #expect(result == 1)
    #expect(read(0x4c) == 0x8001_0155)
    #expect(read(0x50) == 3)
    #expect(read(0x54) == 2)
    #expect(read(0x58) == 1)
    for (code, expected): (PageGroupResponse.Code, UInt64) in [(.invalidRequest, 10), (.responseFailure, 11)] {
      run(5 | 1 << 12 | 1 << 14, source: Self.virtual)
      root.cache?.receive(PageGroupResponse(code: code, groupIndex: 0, pasid: nil))
      #expect(result == expected)
    }
    #expect(word(PageRequestControl.id, 6) & 1 != 0, "response failure")
    // A request that is not the last of its group gets no response: the command ends when the request is sent.
    #expect(run(5 | 1 << 12, source: Self.virtual) == 1)
    #expect(run(6 | 1 << 4) == 1)
    #expect(root.state.withLock { $0.pageRequests.last } == .stopMarker(pasid: 3))
  }

  @Test("a transfer requests the pages that it needs, and continues")
  func faultingTransfer() {
    root.map(Self.virtual, to: Self.physical)
    let bytes = fill(0x2000)
    run(2 | 1 << 8 | 1 << 10, destination: Self.virtual, count: 0x2000)
    #expect(isBusy)
    root.map(Self.virtual + 0x1000, to: 0x9000)
    root.cache?.receive(PageGroupResponse(code: .success, groupIndex: 0, pasid: nil))
    #expect(!isBusy)
    #expect(result == 1)
    #expect(read(0x38) == 0x2000)
    #expect(root.memory.copy(Self.physical, count: 0x1000) == Array(bytes[..<0x1000]))
    #expect(root.memory.copy(0x9000, count: 0x1000) == Array(bytes[0x1000...]))
    #expect(root.state.withLock { $0.pageRequests.map(\.address) } == [Self.virtual + 0x1000])
  }

  @Test("the engine gives up after 16 success responses without a mapping")
  func patience() {
    run(1 | 1 << 8 | 1 << 10, source: Self.virtual, count: 8)
    var answers = 0
    while isBusy, answers < 100 {
      root.cache?.receive(PageGroupResponse(code: .success, groupIndex: 0, pasid: nil))
      answers += 1
    }
    #expect(answers == 16)
    #expect(result == 13)
    root.state.withLock { $0.outcome = .answered(.success) }
    #expect(run(1 | 1 << 8 | 1 << 10, source: Self.virtual, count: 8) == 13)
    root.state.withLock { $0.outcome = .answered(.invalidRequest) }
    #expect(run(1 | 1 << 8 | 1 << 10, source: Self.virtual, count: 8) == 10)
    root.state.withLock { $0.outcome = .discarded }
    #expect(run(5 | 1 << 12 | 1 << 14, source: Self.virtual) == 11)
  }

  @Test("a waiting command is ended by the control register, by a reset of PRI and by a reset")
  func ending() {
    run(5 | 1 << 12 | 1 << 14, source: Self.virtual)
    #expect(isBusy)
    write(0x18, 0xdead)
    #expect(read(0x18) == Self.virtual & 0xffff_ffff, "the operands of a running command do not change")
    write(0x08, 1 << 8)
    #expect(!isBusy)
    #expect(result == 12)
    run(5 | 1 << 12 | 1 << 14, source: Self.virtual)
    control(PageRequestControl.id, 4, 0)
    #expect(word(PageRequestControl.id, 6) & 0x100 == 0, "the function has not stopped while a request is outstanding")
    control(PageRequestControl.id, 4, 2)
    #expect(!isBusy)
    #expect(word(PageRequestControl.id, 4) == 0)
    enable()
    run(5 | 1 << 12 | 1 << 14, source: Self.virtual)
    device.function.reset()
    #expect(read(0x0c) == 0)
    enable()
    root.cache?.receive(PageGroupResponse(code: .success, groupIndex: 0, pasid: nil))
    #expect(read(0x0c) == 0)
    root.map(Self.virtual, to: Self.physical)
    #expect(run(1, source: Self.virtual, count: 8) == 1)
  }

  @Test("each command needs its enable bits")
  func enables() {
    root.map(Self.virtual, to: Self.physical)
    control(ProcessAddressSpaceControl.id, 6, 1)
    #expect(run(1 | 1 << 4, source: Self.virtual, count: 8) == 1)
    #expect(run(1 | 1 << 4 | 1 << 5, source: Self.virtual, count: 8) == 4)
    #expect(run(1 | 1 << 4 | 1 << 6, source: Self.virtual, count: 8) == 4)
    control(ProcessAddressSpaceControl.id, 6, 0)
    #expect(run(1 | 1 << 4, source: Self.virtual, count: 8) == 4)
    control(PageRequestControl.id, 4, 0)
    #expect(run(5 | 1 << 12, source: Self.virtual) == 4)
    #expect(word(PageRequestControl.id, 6) & 0x100 != 0, "stopped")
    control(AddressTranslationControl.id, 6, 0)
    for command: UInt64 in [4, 1 | 1 << 8, 1 | 1 << 9] {
      #expect(run(command, source: Self.virtual, count: 8) == 4)
    }
  }

  @Test("a malformed command gives its result code")
  func nonsense() {
    for command: UInt64 in [
      0, 7, 15, 1 | 1 << 5, 1 | 1 << 6, 1 | 1 << 10, 1 | 1 << 8 | 1 << 9, 1 | 1 << 4 | 1 << 9, 1 | 1 << 12, 1 | 1 << 15,
      1 | 1 << 25, 4 | 1 << 14, 6, 1 | 1 << 16, 0xffff_ffff,
    ] {
      #expect(run(command, source: Self.virtual, count: 8) == 2, "\(String(command, radix: 16))")
    }
    write(0x30, 0xffff)
    #expect(run(2, destination: Self.virtual, count: 2) == 3)
    write(0x30, 0xffff_ffff)
    #expect(run(1, source: .max, count: .max) == 3)
  }

  @Test("a transfer across the top of the address space moves nothing")
  func top() {
    root.map(.max - 0xfff, to: Self.physical)
    root.map(0, to: Self.physical + 0x1000)
    _ = fill(0x1000)
    for command: UInt64 in [1, 2, 3] {
      #expect(run(command, source: .max - 0x1f, destination: .max - 0x1f, count: 64) == 6)
      #expect(read(0x38) == 0)
    }
    #expect(run(3, source: 0, destination: .max - 0x1f, count: 33) == 6)
    #expect(run(3, source: .max - 0x1f, destination: 0, count: 33) == 6)
    #expect(root.takeAccesses().isEmpty)
    #expect(run(2, destination: .max - 0x1f, count: 32) == 1)
    #expect(root.takeAccesses().map(\.address) == [.max - 0x1f])
  }

  @Test("a reset waits for the page that is being written, and the engine writes no further page")
  func resetWaits() {
    let memory = GatedMemory(size: 1 << 20)
    let root = DirectRemapper(memory: memory)
    let environment = PCIEnvironment(
      memoryBus: AddressBus(), ioBus: AddressBus(), memory: memory, remapper: root, interrupts: router,
      workers: ThreadedWorkerSource(), makeParking: { SemaphoreParking() })
    let device = DMAEngine(environment: environment, address: RequesterID(bus: 0, device: 4, function: 0))
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
    for (offset, value): (UInt64, UInt64) in [(0x20, 0x4000), (0x28, 0x4000), (0x10, 2)] {
      device.writeRegion(bar: 0, offset: offset, width: .doubleword, value: value)
    }
    #expect(eventually { memory.waiting == 1 })
    let isReset = SharedInteger()
    let thread = TestThread {
      device.function.reset()
      isReset.increment()
    }
    // This is enough time for a reset that does not wait.
    usleep(100_000)
    #expect(isReset.value == 0, "the page is still being written")
    memory.open()
    thread.join()
    #expect(memory.written == 0x1000, "the three other pages are not written")
    device.function.revoke()
  }

  @Test("the end of a command with the interrupt bit sends the message of the chosen vector")
  func interrupt() {
    // BAR 1 holds the MSI-X table. The entry of vector 2 is at 0x20. MSI-X is the first capability, at 0x40.
    let table = device.function.description.baseAddressRegisters[1]
    device.function.place(table, at: 0xc000_0000)
    let bus = device.function.environment.memoryBus
    bus.write(address: 0xc000_0020, width: .quadword, value: 0xfee0_1000)
    bus.write(address: 0xc000_0028, width: .quadword, value: 0x41)
    device.function.writeConfiguration(offset: 0x42, width: .word, value: 0x8000)
    write(0x34, 2)
    root.map(Self.virtual, to: Self.physical)
    #expect(run(1 | 1 << 11, source: Self.virtual, count: 8) == 1)
    #expect(router.messages == [InterruptMessage(address: 0xfee0_1000, data: 0x41)])
    #expect(run(1, source: Self.virtual, count: 8) == 1)
    #expect(router.messages.count == 1)
  }

  @Test("random register writes do no harm", arguments: [1, 2, 3] as [UInt64])
  func hostile(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for page: UInt64 in 0..<16 { root.map(page << 12, to: page << 12, DMAAccess(rawValue: UInt8(page % 8))) }
    for _ in 0..<20000 {
      let value = random.next() >> (random.next() % 64)
      switch random.next() % 8 {
      case 0: invalidate(UInt8(random.next() % 32), pasid: Bool.random(using: &random) ? 3 : nil, first: 0, last: value)
      case 1:
        root.cache?.receive(PageGroupResponse(code: .success, groupIndex: UInt16(value & 0x1ff), pasid: nil))
      case 2:
        device.function.writeConfiguration(
          offset: Int(random.next() % 0x120), width: .word, value: value & 0xffff)
      case 3: write(0x28, value & 0x3fff, .quadword)
      case 4: device.writeRegion(bar: 2, offset: value, width: .quadword, value: value)
      default:
        write(random.next() % 0x80, value, AccessWidth.allCases[Int(random.next() % 4)])
      }
      _ = read(random.next() % 0x100, .quadword)
    }
    device.function.reset()
    enable()
    root.map(Self.virtual, to: Self.physical)
    #expect(run(1, source: Self.virtual, count: 8) == 1)
    device.function.revoke()
  }
}
