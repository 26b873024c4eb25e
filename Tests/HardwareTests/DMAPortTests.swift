import Hardware
import Synchronization
import TestSupport
import Testing

/// A port with a fixed list of translations: ranges of device addresses, each with a physical address.
private final class ListedPort: DMAPort {
  struct Run: Sendable {
    let address: UInt64
    let count: UInt64
    let physical: UInt64
    var access: DMAAccess = [.read, .write]
  }

  let memory: any PhysicalMemory
  let inFlight = RequestsInFlight()
  private let runs: [Run]
  private let log = Mutex<[(address: UInt64, count: Int, access: DMAAccess)]>([])

  init(memory: any PhysicalMemory, _ runs: [Run]) {
    self.memory = memory
    self.runs = runs
  }

  var requests: [(address: UInt64, count: Int, access: DMAAccess)] { log.withLock { $0 } }

  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    log.withLock { $0.append((address, count, access)) }
    for run in runs where address >= run.address && address - run.address < run.count && run.access.contains(access) {
      let into = address - run.address
      return PhysicalSegment(address: run.physical &+ into, count: Int(min(UInt64(count), run.count - into)))
    }
    throw .translation
  }
}

@Suite struct DMAPortTests {
  private let memory = HeapMemory(size: 0x10000)

  private func port(_ runs: [ListedPort.Run]) -> ListedPort { ListedPort(memory: memory, runs) }

  private func read(_ port: some DMAPort, _ address: UInt64, _ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xee, count: count)
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    try port.read(from: address, into: &raw)
    return bytes
  }

  private func write(_ port: some DMAPort, _ bytes: [UInt8], _ address: UInt64) throws {
    try port.write(bytes.span.bytes, to: address)
  }

  @Test("resolve starts a new segment where translations are not contiguous")
  func resolveSplitsWhereTranslationsEnd() throws {
    let port = port([
      .init(address: 0x10_0000, count: 0x1000, physical: 0x3000),
      .init(address: 0x10_1000, count: 0x1000, physical: 0x1000),
    ])
    var segments: [PhysicalSegment] = []
    try port.resolve(0x10_0ff0, count: 0x20, for: .read, into: &segments, during: port.request())
    #expect(segments == [PhysicalSegment(address: 0x3ff0, count: 0x10), PhysicalSegment(address: 0x1000, count: 0x10)])
    #expect(port.requests.map(\.address) == [0x10_0ff0, 0x10_1000])
    #expect(port.requests.map(\.count) == [0x20, 0x10])
  }

  @Test("resolve joins physically adjacent translations") func resolveJoinsWhatIsAdjacent() throws {
    let port = port([
      .init(address: 0x10_0000, count: 0x1000, physical: 0x3000),
      .init(address: 0x10_1000, count: 0x1000, physical: 0x4000),
      .init(address: 0x10_2000, count: 0x1000, physical: 0x5000),
    ])
    var segments: [PhysicalSegment] = []
    try port.resolve(0x10_0800, count: 0x2000, for: .write, into: &segments, during: port.request())
    #expect(segments == [PhysicalSegment(address: 0x3800, count: 0x2000)])
  }

  /// Adjacent segments of two resolve calls stay separate, because the caller counts them.
  @Test("resolve does not extend a segment of an earlier request")
  func resolveDoesNotJoinWithWhatWasThereBefore() throws {
    let port = port([.init(address: 0, count: 0x10000, physical: 0)])
    var segments: [PhysicalSegment] = []
    try port.resolve(0x1000, count: 0x100, for: .read, into: &segments, during: port.request())
    try port.resolve(0x1100, count: 0x100, for: .read, into: &segments, during: port.request())
    #expect(segments.map(\.address) == [0x1000, 0x1100])
    try port.resolve(0, count: 0, for: .read, into: &segments, during: port.request())
    #expect(segments.count == 2)
  }

  @Test("resolve refuses a range outside RAM or without a translation")
  func resolveRefusesWhatIsNotMemoryOrNotTranslated() {
    let port = port([
      .init(address: 0, count: 0x1000, physical: 0xfff0),
      .init(address: 0x2000, count: 0x1000, physical: .max - 0x7ff),
      .init(address: 0x4000, count: 0x1000, physical: 0x1000, access: .read),
    ])
    var segments: [PhysicalSegment] = []
    #expect(throws: DMAError.notMemory) {
      try port.resolve(0, count: 0x11, for: .read, into: &segments, during: port.request())
    }
    #expect(throws: DMAError.notMemory) {
      try port.resolve(0x2000, count: 0x1000, for: .read, into: &segments, during: port.request())
    }
    #expect(throws: DMAError.translation) {
      try port.resolve(0x1000, count: 1, for: .read, into: &segments, during: port.request())
    }
    #expect(throws: DMAError.translation) {
      try port.resolve(0x4000, count: 1, for: .write, into: &segments, during: port.request())
    }
    #expect(throws: DMAError.translation) {
      try port.resolve(0x4ff0, count: 0x20, for: .read, into: &segments, during: port.request())
    }
  }

  @Test("reads and writes are split where translations are not contiguous") func readsAndWritesFollowTheSplits() throws
  {
    let port = port([
      .init(address: 0x100, count: 3, physical: 0x200),
      .init(address: 0x103, count: 5, physical: 0x1ffd),
    ])
    try write(port, [1, 2, 3, 4, 5, 6, 7, 8], 0x100)
    #expect(memory.copy(0x200, count: 3) == [1, 2, 3])
    #expect(memory.copy(0x1ffd, count: 5) == [4, 5, 6, 7, 8])
    #expect(try read(port, 0x101, 5) == [2, 3, 4, 5, 6])
    #expect(try read(port, 0x100, 0).isEmpty)
    #expect(Set(port.requests.map(\.access)) == [.read, .write])
  }

  @Test("reads and writes outside RAM or without a translation are refused") func readsAndWritesRefuse() {
    let port = port([
      .init(address: 0, count: 0x1000, physical: 0xfff8),
      .init(address: 0x1000, count: 0x1000, physical: 0x1000, access: .read),
      .init(address: .max - 0xf, count: 0x10, physical: 0x1000),
    ])
    #expect(throws: DMAError.notMemory) { try read(port, 0, 9) }
    #expect(throws: DMAError.notMemory) { try write(port, [UInt8](repeating: 1, count: 9), 0) }
    #expect(memory.copy(0xfff8, count: 8) == [UInt8](repeating: 0, count: 8))
    #expect(throws: DMAError.translation) { try write(port, [1], 0x1000) }
    #expect(throws: DMAError.translation) { try read(port, 0x1ff8, 16) }
  }

  @Test("a transfer across the top of the address space is refused as a whole, before any translation")
  func theTop() throws {
    let port = port([
      .init(address: .max - 0xf, count: 0x10, physical: 0x1000), .init(address: 0, count: 0x1000, physical: 0x2000),
    ])
    #expect(throws: DMAError.notMemory) { try read(port, .max - 0xf, 32) }
    #expect(throws: DMAError.notMemory) { try write(port, [UInt8](repeating: 1, count: 17), .max - 0xf) }
    var segments: [PhysicalSegment] = []
    #expect(throws: DMAError.notMemory) {
      try port.resolve(.max, count: 2, for: .read, into: &segments, during: port.request())
    }
    #expect(port.requests.isEmpty)
    #expect(segments.isEmpty)
    #expect(memory.copy(0x1000, count: 16) == [UInt8](repeating: 0, count: 16))
    // The last byte of the address space is accessible.
    try write(port, [UInt8](repeating: 2, count: 16), .max - 0xf)
    #expect(memory.copy(0x100f, count: 1) == [2])
    #expect(try read(port, .max, 1) == [2])
    #expect(try read(port, .max, 0).isEmpty)
    try port.resolve(.max - 0xf, count: 16, for: .read, into: &segments, during: port.request())
    #expect(segments == [PhysicalSegment(address: 0x1000, count: 16)])
  }

  @Test("single accesses of 2, 4 and 8 bytes are translated, and refused if misaligned")
  func singleAccessesOfEachWidth() throws {
    let port = port([.init(address: 0x8000, count: 0x1000, physical: 0x1000)])
    try port.storeUInt64(0x8877_6655_4433_2211, at: 0x8010)
    #expect(memory.copy(0x1010, count: 8) == [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88])
    #expect(try port.loadUInt16(at: 0x8012) == 0x4433)
    #expect(try port.loadUInt32(at: 0x8014) == 0x8877_6655)
    #expect(try port.loadUInt64(at: 0x8010) == 0x8877_6655_4433_2211)
    try port.storeUInt16(0xaaaa, at: 0x8010)
    try port.storeUInt32(0xbbbb_bbbb, at: 0x8014)
    #expect(try port.loadUInt64(at: 0x8010) == 0xbbbb_bbbb_4433_aaaa)
    #expect(throws: DMAError.notMemory) { try port.loadUInt32(at: 0x8011) }
    #expect(throws: DMAError.notMemory) { try port.storeUInt64(0, at: 0x8ffc) }
    #expect(throws: DMAError.translation) { try port.loadUInt16(at: 0x9000) }
  }

  @Test("a direct port refuses all requests while bus mastering is off")
  func aDirectPortGoesByBusMasterEnable() throws {
    let requester = Requester(id: RequesterID(rawValue: 0x10))
    let port = DirectRemapper(memory: memory).makePort(for: requester)
    #expect(throws: DMAError.disabled) { try port.loadUInt32(at: 0) }
    requester.busMasterEnable = true
    try port.storeUInt32(0x1234_5678, at: 0x400)
    #expect(try port.loadUInt32(at: 0x400) == 0x1234_5678)
    #expect(try port.translate(0x400, count: 1 << 30, for: .read) == PhysicalSegment(address: 0x400, count: 1 << 30))
    #expect(throws: DMAError.notMemory) { try port.loadUInt32(at: .max - 3) }
    requester.busMasterEnable = false
    #expect(throws: DMAError.disabled) { try port.storeUInt32(0, at: 0x400) }
  }
}
