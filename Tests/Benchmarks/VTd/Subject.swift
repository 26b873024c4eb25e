import CWalker
import Hardware
import Linux
import VTdOracle

/// As in the machine, the guest's RAM is the unit's physical memory.
extension GuestMemory: PhysicalMemory {}

/// One unit with two devices, each with its own PASID table and first-stage table, and the C walker with the same
/// memory contents.
final class Subject: @unchecked Sendable {
  enum Translation {
    /// PGTT 001: four levels.
    case firstStage
    /// PGTT 011: four levels, each translated by four second-stage levels.
    case nested
  }

  static let memorySize: UInt64 = 32 << 20
  static let mappedPages: UInt64 = 2048
  private static let firstAddress: UInt64 = 0x12_3450_0000
  /// The physical address of the mapped pages, above the tables.
  private static let dataBase: UInt64 = 16 << 20
  private static let domain: UInt16 = 5

  let guest: Guest
  let ports: [any DMAPort]
  let cUnit: OpaquePointer
  let cPorts: [OpaquePointer]

  /// Every mapped page, in random order. There are four times as many pages as IOTLB entries, so hits are rare.
  let everyPage: [UInt64]
  /// Few enough pages to stay cached.
  let fewPages: [UInt64]

  /// How many descriptors one doorbell submits; the last is a wait.
  static let batch = 64

  init(_ translation: Translation) throws {
    let memory = try GuestMemory(size: Self.memorySize, lowLimit: 0x8000_0000)
    guest = try Guest.nested(memory: memory)
    // The recording observer is for tests only.
    guest.unit.removeObserver(guest.observer)
    let isNested = translation == .nested
    let second = isNested ? Self.identityTable(in: guest) : 0

    let sources = [RequesterID(rawValue: 0x18), RequesterID(rawValue: 0x20)]
    var paths: [cw_path] = []
    var root: UInt64 = 0
    var contexts: UInt64 = 0
    for (index, source) in sources.enumerated() {
      let first = Self.firstStageTable(in: guest, device: UInt64(index))
      let words = Guest.pasidEntry(
        type: isNested ? 3 : 1, domain: Self.domain + UInt16(index), firstStage: first, secondStage: second,
        first: isNested ? 1 << 9 : 0, second: 1 << 23)
      let tables = guest.scalableTables(source: source, words: words)
      if index == 0 {
        root = tables.root
        contexts = tables.context - UInt64(source.deviceFunction) * 32
      } else {
        // This context entry goes into the first device's table.
        let place = contexts + UInt64(source.deviceFunction) * 32
        for offset: UInt64 in [0, 8, 16, 24] {
          guest.store(guest.load(tables.context + offset), at: place + offset)
        }
      }
      var path = cw_path()
      path.domain = Self.domain + UInt16(index)
      path.stages = isNested ? CW_BOTH : CW_FIRST
      path.first_root = first
      path.first_levels = 4
      path.second_root = second
      path.second_levels = 4
      path.page_walk_snoop = true
      path.second_accessed_dirty = isNested
      paths.append(path)
    }
    guest.setRootTable(root, scalable: true)
    guest.enableTranslation()
    ports = sources.map { [guest] in guest.port($0) }

    var random = SeededGenerator(seed: 1)
    let pages = (0..<Self.mappedPages).map { Self.firstAddress + $0 << 12 + 8 * ($0 % 512) }
    everyPage = pages.shuffled(using: &random)
    fewPages = Array(pages.prefix(64)).shuffled(using: &random)
    try Self.fillQueue(of: guest)

    let width = Int32(guest.unit.options.addressWidth)
    guard
      let unit = cw_unit_create(
        Self.memorySize, 0, Int32(guest.unit.options.hostAddressWidth), width, guest.unit.options.fs1gp),
      let ram = cw_unit_ram(unit)
    else { throw BenchmarkError("no memory for the C walker") }
    var bytes = MutableRawSpan(_unsafeStart: ram, byteCount: Int(Self.memorySize))
    guard memory.read(from: 0, into: &bytes) else { throw BenchmarkError("cannot copy the RAM") }
    cw_unit_set_queue(unit, guest.queueBase, 0x1000)
    cUnit = unit
    cPorts = try zip(sources, paths).map { source, path in
      var path = path
      guard let port = cw_port_create(unit, source.rawValue, &path) else { throw BenchmarkError("no C port") }
      return port
    }
  }

  /// Builds a first stage of 4 KiB pages with accessed and dirty bits set.
  private static func firstStageTable(in guest: Guest, device: UInt64) -> UInt64 {
    let root = guest.page()
    for page in 0..<mappedPages {
      guest.map(
        firstAddress + page << 12, in: root, levels: 4,
        entry: dataBase + (page ^ device) << 12 | Guest.firstStageLeaf, tableBits: Guest.firstStageTable)
    }
    return root
  }

  /// Builds a second stage of 4 KiB pages for all RAM, with accessed and dirty bits set.
  private static func identityTable(in guest: Guest) -> UInt64 {
    let root = guest.page()
    for page in 0..<memorySize >> 12 {
      guest.map(page << 12, in: root, levels: 4, entry: page << 12 | 0x303, tableBits: 0x103)
    }
    return root
  }

  /// Fills the queue with two batches, each of single-page invalidations of the first device and a wait.
  private static func fillQueue(of guest: Guest) throws {
    guest.enableQueue(wide: true)
    for slot in 0..<UInt64(0x1000 / 32) {
      let isWait = slot % UInt64(batch) == UInt64(batch) - 1
      let place = guest.queueBase + slot * 32
      guest.store(isWait ? (slot + 1) << 32 | 0x25 : UInt64(domain) << 16 | 0x36, at: place)
      guest.store(isWait ? guest.statusPage : firstAddress + slot << 12, at: place + 8)
    }
  }

  /// Rings the unit's doorbell once per batch.
  func invalidate(batches: Int) throws {
    for _ in 0..<batches {
      tail = (tail + UInt64(Self.batch) * 32) % 0x1000
      guest.write64(0x88, tail)
    }
    // The last wait descriptor has stored its slot number plus one.
    let last = (tail == 0 ? 0x1000 : tail) / 32
    guard guest.memory.loadUInt32(at: guest.statusPage) == UInt32(last) else {
      throw BenchmarkError("the queue stopped")
    }
  }

  func invalidateInC(batches: Int) throws {
    for _ in 0..<batches {
      cTail = (cTail + UInt64(Self.batch) * 32) % 0x1000
      guard cw_ring(cUnit, cTail) else { throw BenchmarkError("the C queue stopped") }
    }
  }

  private var tail: UInt64 = 0
  private var cTail: UInt64 = 0
}

struct BenchmarkError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}
