import Hardware
import Synchronization
import TestSupport
import VTd

/// A driver's view of one unit: guest memory with a page allocator, the registers, the queue, and functions that build
/// each table.
package final class Guest {
  package static let memorySize = 8 << 20

  package let memory: any PhysicalMemory
  package let events = RecordingRouter()
  package let sink = RecordingSink()
  package let observer = RecordingObserver()
  /// Where a thread that rings a doorbell waits for requests in flight.
  package let parking = SemaphoreParking()
  package let unit: RemappingUnit

  package private(set) var nextPage: UInt64 = 0x10_0000
  package private(set) var queueBase: UInt64 = 0
  private var queueWide = false
  private var queueTail: UInt64 = 0
  private var queueSize: UInt64 = 0x1000
  package private(set) var statusPage: UInt64 = 0
  private var statusCount: UInt32 = 0

  /// The sources of the unit's own interrupts. They distinguish these interrupts in the log.
  package static let faultSource = RequesterID(rawValue: 0xfff0)
  package static let completionSource = RequesterID(rawValue: 0xfff1)
  package static let pageRequestSource = RequesterID(rawValue: 0xfff2)

  /// - Parameter memory: at least `memorySize` bytes of RAM from address 0, zeroed.
  package init(
    memory: any PhysicalMemory = HeapMemory(size: Guest.memorySize), deviceTimer: (any OneShotTimer)? = nil,
    trace: Trace? = nil,
    _ change: (inout UnitOptions) -> Void = { _ in }
  ) throws {
    self.memory = memory
    var options = UnitOptions()
    change(&options)
    unit = try RemappingUnit(
      options: options, memory: memory, faultEvent: events.makeRoute(for: Requester(id: Self.faultSource)),
      invalidationEvent: events.makeRoute(for: Requester(id: Self.completionSource)),
      pageRequestEvent: events.makeRoute(for: Requester(id: Self.pageRequestSource)), messages: sink,
      trace: trace, parking: parking, deviceTimer: deviceTimer)
    unit.addObserver(observer)
  }

  package static func scalable(
    memory: any PhysicalMemory = HeapMemory(size: Guest.memorySize), _ change: (inout UnitOptions) -> Void = { _ in }
  ) throws -> Guest {
    try Guest(memory: memory) {
      $0.scalableMode = true
      change(&$0)
    }
  }

  package static func firstStage(
    memory: any PhysicalMemory = HeapMemory(size: Guest.memorySize), _ change: (inout UnitOptions) -> Void = { _ in }
  ) throws -> Guest {
    try scalable(memory: memory) {
      $0.firstStage = true
      change(&$0)
    }
  }

  package static func nested(
    memory: any PhysicalMemory = HeapMemory(size: Guest.memorySize), _ change: (inout UnitOptions) -> Void = { _ in }
  ) throws -> Guest {
    try firstStage(memory: memory) {
      $0.nested = true
      change(&$0)
    }
  }

  // MARK: Registers

  package func read32(_ offset: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: unit.read(offset: UInt64(offset), width: .doubleword))
  }
  package func read64(_ offset: Int) -> UInt64 { unit.read(offset: UInt64(offset), width: .quadword) }
  package func write32(_ offset: Int, _ value: UInt32) {
    unit.write(offset: UInt64(offset), width: .doubleword, value: UInt64(value))
  }
  package func write64(_ offset: Int, _ value: UInt64) {
    unit.write(offset: UInt64(offset), width: .quadword, value: value)
  }

  package var status: UInt32 { read32(0x1c) }

  /// Sets or clears one command bit and keeps the others, as drivers do.
  package func command(set bit: Int) { write32(0x18, (status & 0x8680_0000) | 1 << UInt32(bit)) }
  package func command(clear bit: Int) { write32(0x18, (status & 0x8680_0000) & ~(1 << UInt32(bit))) }

  package func setRootTable(_ address: UInt64, scalable: Bool) {
    write64(0x20, address | (scalable ? 0x400 : 0))
    command(set: 30)
  }
  package func enableTranslation() { command(set: 31) }

  /// Empties the unit's caches in any table mode, by setting the root table pointer again.
  package func forgetAll() { command(set: 30) }

  /// Returns and clears the fault in the fault recording register; nil if there is none.
  package func takeFault() -> (reason: UInt8, source: UInt16, address: UInt64, isRead: Bool, pasid: UInt32?)? {
    let high = read64(0x228)
    guard high[bit: 63] else { return nil }
    let low = read64(0x220)
    write32(0x22c, 0x8000_0000)
    return (
      UInt8(truncatingIfNeeded: high >> 32), UInt16(truncatingIfNeeded: high), low, high[bit: 62],
      high[bit: 31] ? UInt32(truncatingIfNeeded: high[bits: 40...59]) : nil
    )
  }

  // MARK: Memory

  /// Allocates zeroed pages, from 1 MiB on.
  package func page(count: UInt64 = 1) -> UInt64 {
    defer { nextPage += 0x1000 * count }
    return nextPage
  }

  package func store(_ value: UInt64, at address: UInt64) { _ = memory.storeUInt64(value, at: address) }
  package func load(_ address: UInt64) -> UInt64 { memory.loadUInt64(at: address) ?? 0xdead }

  // MARK: Queue

  package func enableQueue(wide: Bool, pages: UInt64 = 0) {
    queueWide = wide
    queueSize = 0x1000 << pages
    queueBase = page(count: 1 << pages)
    statusPage = page()
    queueTail = 0
    write64(0x88, 0)
    write64(0x90, queueBase | (wide ? 0x800 : 0) | pages)
    command(set: 26)
  }

  /// Puts descriptors into the queue and moves the tail.
  package func submit(_ descriptors: [UInt64]...) {
    for descriptor in descriptors {
      for word in 0..<(queueWide ? 4 : 2) {
        store(word < descriptor.count ? descriptor[word] : 0, at: queueBase + queueTail + UInt64(word) * 8)
      }
      queueTail = (queueTail + (queueWide ? 32 : 16)) % queueSize
    }
    write64(0x88, queueTail)
  }

  /// Puts a descriptor into the queue without moving the tail.
  package func put(_ descriptor: [UInt64]) {
    for word in 0..<(queueWide ? 4 : 2) {
      store(word < descriptor.count ? descriptor[word] : 0, at: queueBase + queueTail + UInt64(word) * 8)
    }
    queueTail = (queueTail + (queueWide ? 32 : 16)) % queueSize
  }

  /// Submits descriptors, followed by a wait descriptor.
  /// - Returns: whether the wait completed.
  package func submitAndWait(_ descriptors: [UInt64]...) -> Bool {
    statusCount += 1
    var all = descriptors
    all.append([UInt64(statusCount) << 32 | 0x25, statusPage])
    for descriptor in all {
      for word in 0..<(queueWide ? 4 : 2) {
        store(word < descriptor.count ? descriptor[word] : 0, at: queueBase + queueTail + UInt64(word) * 8)
      }
      queueTail = (queueTail + (queueWide ? 32 : 16)) % queueSize
    }
    write64(0x88, queueTail)
    return memory.loadUInt32(at: statusPage) == statusCount
  }

  // MARK: Tables

  /// Writes a paging entry and creates the tables above it.
  /// - Parameter tableBits: low bits of the entries that point to the created tables.
  package func map(
    _ input: UInt64, in root: UInt64, levels: Int, entry: UInt64, atLevel leaf: Int = 1, tableBits: UInt64
  ) {
    store(entry, at: slot(of: input, in: root, levels: levels, level: leaf, tableBits: tableBits))
  }

  /// Returns the address of the entry for `input` at `level`.
  package func slot(of input: UInt64, in root: UInt64, levels: Int, level leaf: Int = 1, tableBits: UInt64 = 0)
    -> UInt64
  {
    var table = root
    var level = levels
    while true {
      let place = table + ((input >> UInt64(12 + 9 * (level - 1))) & 0x1ff) * 8
      if level == leaf { return place }
      var entry = load(place)
      if entry == 0 {
        entry = page() | tableBits
        store(entry, at: place)
      }
      table = entry & 0xf_ffff_ffff_f000
      level -= 1
    }
  }

  package static let firstStageTable: UInt64 = 0x27  // P, R/W, U/S, A
  package static let firstStageLeaf: UInt64 = 0x67  // with D
  package static let secondStageBits: UInt64 = 0x3  // R, W

  /// Builds root and context table of legacy mode, with one device.
  package func legacyTables(
    source: RequesterID, secondStage: UInt64, type: UInt64 = 0, addressWidth: UInt64 = 2, domain: UInt16 = 7,
    faultDisable: Bool = false
  ) -> (root: UInt64, context: UInt64) {
    let root = page()
    let table = page()
    let context = table + UInt64(source.deviceFunction) * 16
    store(table | 1, at: root + UInt64(source.bus) * 16)
    store(secondStage | type << 2 | (faultDisable ? 2 : 0) | 1, at: context)
    store(UInt64(domain) << 8 | addressWidth, at: context + 8)
    return (root, context)
  }

  package struct ScalableTables {
    package var root: UInt64
    package var rootHalf: UInt64
    package var context: UInt64
    package var directory: UInt64
    /// The entry of PASID 0.
    package var entry: UInt64
  }

  /// Builds root, context, PASID directory and PASID table of scalable mode, with one device and PASID 0.
  package func scalableTables(source: RequesterID, words: (UInt64, UInt64, UInt64)) -> ScalableTables {
    let root = page()
    let contexts = page()
    let upper = source.deviceFunction >= 0x80
    let rootHalf = root + UInt64(source.bus) * 16 + (upper ? 8 : 0)
    let context = contexts + UInt64(source.deviceFunction & 0x7f) * 32
    let directory = page()
    let table = page()
    store(contexts | 1, at: rootHalf)
    store(directory | 1, at: context)
    store(table | 1, at: directory)
    store(words.0, at: table)
    store(words.1, at: table + 8)
    store(words.2, at: table + 16)
    return ScalableTables(root: root, rootHalf: rootHalf, context: context, directory: directory, entry: table)
  }

  /// Returns the first three words of a PASID-table entry.
  package static func pasidEntry(
    type: UInt64, domain: UInt16 = 5, firstStage: UInt64 = 0, secondStage: UInt64 = 0, addressWidth: UInt64 = 2,
    first: UInt64 = 0, second: UInt64 = 0, third: UInt64 = 0
  ) -> (UInt64, UInt64, UInt64) {
    (
      secondStage | type << 6 | addressWidth << 2 | 1 | first, UInt64(domain) | second, firstStage | third
    )
  }

  package func port(_ source: RequesterID, pasid: UInt32? = nil) -> any DMAPort {
    unit.makePort(for: Requester(id: source, busMasterEnable: true), pasid: pasid)
  }
}

/// The translation of a request, or why it was refused.
package enum Answer: Equatable {
  case at(UInt64, Int)
  case refused(DMAError)
}

extension DMAPort {
  package func answer(_ address: UInt64, count: Int = 8, _ access: DMAAccess = .read) -> Answer {
    do {
      let segment = try translate(address, count: count, for: access)
      return .at(segment.address, segment.count)
    } catch {
      return .refused(error)
    }
  }
}

package final class RecordingSink: MessageSink {
  package init() {}

  package struct Delivery: Hashable, Sendable {
    package let source: RequesterID
    package let message: InterruptMessage
    package init(source: RequesterID, message: InterruptMessage) {
      self.source = source
      self.message = message
    }
  }
  private let log = Mutex<[Delivery]>([])
  private let hook = Mutex<(@Sendable () -> Void)?>(nil)
  package var deliveries: [Delivery] { log.withLock { $0 } }
  /// Sets an action that runs before each message is delivered.
  package func onMessage(_ action: @escaping @Sendable () -> Void) { hook.withLock { $0 = action } }
  package func send(_ message: InterruptMessage, from requester: RequesterID) {
    hook.withLock { $0 }?()
    log.withLock { $0.append(Delivery(source: requester, message: message)) }
  }
}

package final class RecordingObserver: InvalidationObserver {
  package init() {}

  private let log = Mutex<[Invalidation]>([])
  private let hook = Mutex<(@Sendable () -> Void)?>(nil)
  package func take() -> [Invalidation] {
    log.withLock { log in
      defer { log = [] }
      return log
    }
  }
  package func onInvalidation(_ action: @escaping @Sendable () -> Void) { hook.withLock { $0 = action } }
  package func invalidated(_ invalidations: [Invalidation]) {
    log.withLock { $0 += invalidations }
    hook.withLock { $0 }?()
  }
}
