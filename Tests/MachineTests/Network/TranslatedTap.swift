import Devices
import Hardware
import Linux
import TestSupport
import VTd
import VTdOracle
import Vhost
import VhostSupport

@testable import Machine

/// The queues of a network function behind an IOMMU, which the kernel's vhost-net serves on a tap interface.
final class TranslatedTap {
  /// The guest's paging tables.
  enum Tables: CaseIterable {
    case firstStage
    case legacy

    /// The fault condition of a page that is not mapped: in the first stage that the entry is not
    /// present, in legacy mode that it gives no right to read (06h) or to write (05h).
    func faultReason(_ direction: TapTraffic.Direction) -> UInt8 {
      self == .firstStage ? 0x71 : direction == .transmit ? 6 : 5
    }
  }

  private final class Owner: Sendable {}

  static let source = RequesterID(bus: 0, device: 3, function: 0)
  private static let offset: UInt64 = 0x7_0000_0000

  let tables: Tables
  let wire: TapWire
  let receive: TestRing
  let send: TestRing
  private let guest: Guest
  private let root: UInt64
  private let loop: EventLoop
  private let datapath: VhostDatapath
  /// The failures of the queues since the last start.
  private var session = SharedInteger()

  init(_ tables: Tables) throws {
    self.tables = tables
    let memory = try GuestMemory(size: 16 << 20, lowLimit: 16 << 20)
    wire = try TapWire()
    loop = try EventLoop(name: "vhost test")
    let device = try VhostNet()
    try device.setMemory(memory)
    datapath = try VhostDatapath([device], taps: [wire.tap.rawValue], memory: memory, loop: loop) { _ in }
    // Above the pages that `Guest` allocates. Neighbouring pages become one entry of the kernel.
    receive = try TestRing(memory, at: 0xa0_0000, offset: Self.offset, bufferSize: 4096)
    send = try TestRing(memory, at: 0xb0_0000, offset: Self.offset, bufferSize: 4096)

    guest = tables == .firstStage ? try Guest.firstStage(memory: memory) : try Guest(memory: memory)
    root = guest.page()
    for ring in [receive, send] {
      for area in [ring.descriptors, ring.availableRing, ring.usedRing] { setMapped(area, true) }
      for index in 0..<TestRing.size { setMapped(ring.buffer(index), true) }
    }
    guest.enableQueue(wide: tables == .firstStage)
    switch tables {
    case .firstStage:
      let entry = Guest.pasidEntry(type: 1, firstStage: root)
      guest.setRootTable(guest.scalableTables(source: Self.source, words: entry).root, scalable: true)
    case .legacy:
      guest.setRootTable(guest.legacyTables(source: Self.source, secondStage: root).root, scalable: false)
    }
    guest.enableTranslation()
  }

  func close() { datapath.close() }

  // MARK: Queues

  var failures: Int { session.value }

  /// Starts both queues, as a driver does after a reset.
  func start() throws {
    session = SharedInteger()
    for (number, ring) in [receive, send].enumerated() {
      ring.reset()
      let unit = guest.unit
      try datapath.start(
        DatapathQueue(
          index: number, features: [.version1, .netMergeBuffers, .accessPlatform],
          layout: .init(
            size: TestRing.size, descriptorArea: ring.descriptors + Self.offset,
            driverArea: ring.availableRing + Self.offset, deviceArea: ring.usedRing + Self.offset),
          usesTranslation: true, startIndex: 0, kick: Notifier(descriptor: ring.kick.rawValue, owner: Owner()),
          call: Notifier(descriptor: ring.call.rawValue, owner: Owner()),
          connect: { unit.connect($0, for: Requester(id: Self.source, busMasterEnable: true)) },
          fail: { [session] in session.increment() }))
    }
  }

  /// Stops both queues, and waits until the loop has answered the misses before the stop.
  func stop() {
    for number in 0..<2 { _ = datapath.stop(queue: number) { _ in } }
    let isDone = SharedInteger()
    let job = EventLoop.Job(on: loop)
    job.onRun { isDone.increment() }
    job.schedule()
    _ = eventually { isDone.value > 0 }
  }

  // MARK: The unit

  func deviceAddress(of physical: UInt64) -> UInt64 { physical + Self.offset }

  /// Writes the paging entry of a page, without an invalidation.
  func setMapped(_ physical: UInt64, _ isMapped: Bool) {
    let isFirst = tables == .firstStage
    guest.map(
      deviceAddress(of: physical), in: root, levels: 4,
      entry: isMapped ? physical | (isFirst ? Guest.firstStageLeaf : Guest.secondStageBits) : 0,
      tableBits: isFirst ? Guest.firstStageTable : Guest.secondStageBits)
  }

  /// Invalidates one page through the invalidation queue.
  /// - Returns: whether the wait descriptor completed.
  func invalidate(_ physical: UInt64) -> Bool {
    let address = deviceAddress(of: physical)
    // Page-selective: within PASID 0 of domain 5, or within domain 7, in which `Guest` puts its device.
    let descriptor: UInt64 = tables == .firstStage ? 6 | 3 << 4 | 5 << 16 : 2 | 3 << 4 | 7 << 16
    return guest.submitAndWait([descriptor, address])
  }

  func takeFault() -> (reason: UInt8, source: UInt16, address: UInt64, isRead: Bool, pasid: UInt32?)? {
    guest.takeFault()
  }
}
