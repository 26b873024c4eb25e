import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import VhostUser

private final class Event: Sendable {
  let event: EventDescriptor
  init() throws { event = try EventDescriptor() }
  var shared: SharedDescriptor { SharedDescriptor(event.rawValue, owner: self) }
}

@Suite("QEMU's storage daemon as a back end", .enabled(if: StorageDaemon.isInstalled))
struct StorageDaemonTests {
  private static let queueSize: UInt16 = 16

  /// A driver of queue 0, with rings at fixed addresses.
  private final class Driver {
    let memory: GuestMemory
    let kick: Event
    let call: Event
    let failures = SharedInteger()
    private var next: UInt16 = 0

    init() throws {
      memory = try GuestMemory(size: 16 << 20, lowLimit: 16 << 20, backing: .shared)
      kick = try Event()
      call = try Event()
    }

    var ring: Ring {
      Ring(
        size: StorageDaemonTests.queueSize, descriptorArea: 0x1000, driverArea: 0x2000, deviceArea: 0x3000,
        startIndex: 0, kick: kick.shared, call: call.shared, usedIndex: { [memory] in memory.loadUInt16(at: 0x3002) },
        fail: { [failures] in failures.increment() })
    }

    var usedIndex: UInt16 { memory.loadUInt16(at: 0x3002) ?? 0 }

    /// Makes a request for one sector available and notifies the back end: struct virtio_blk_req, virtio 1.2, 5.2.6.
    func read(sector: UInt64) {
      _ = memory.storeUInt64(0, at: 0x4000)
      _ = memory.storeUInt64(sector, at: 0x4008)
      _ = memory.storeUInt16(0xffff, at: 0x4010)
      // Flags: 1 for next, 2 for write.
      let chain: [(UInt64, UInt32, UInt16, UInt16)] = [
        (0x4000, 16, 1, 1), (0x5000, 512, 3, 2), (0x4010, 1, 2, 0),
      ]
      for (index, (address, count, flags, next)) in chain.enumerated() {
        let descriptor = 0x1000 + UInt64(index) * 16
        _ = memory.storeUInt64(address, at: descriptor)
        _ = memory.storeUInt32(count, at: descriptor + 8)
        _ = memory.storeUInt16(flags, at: descriptor + 12)
        _ = memory.storeUInt16(next, at: descriptor + 14)
      }
      _ = memory.storeUInt16(0, at: 0x2004 + UInt64(next % StorageDaemonTests.queueSize) * 2)
      next &+= 1
      _ = memory.storeUInt16(next, at: 0x2002)
      kick.event.signal()
    }
  }

  private func session(
    _ daemon: StorageDaemon, _ driver: Driver, _ loop: EventLoop, interval: UInt64? = nil
  ) -> VhostUserSession {
    var profile = DeviceProfile(queueCount: 1, queueSize: Self.queueSize, queueCountWithoutReport: 1)
    profile.configurationSize = 60
    profile.requiredProtocolFeatures = .configuration
    profile.memory = MemoryRegion.regions(of: driver.memory) ?? []
    let dialer = ClientDialer(path: daemon.socket, interval: interval, on: loop)
    return VhostUserSession(profile, dialer: dialer, on: loop)
  }

  @Test func `a sector is read through the guest's rings, and the queue stops at its index`() throws {
    let daemon = StorageDaemon()
    try #require(daemon.start())
    let loop = try EventLoop(name: "test")
    defer { loop.stop() }
    let driver = try Driver()
    let session = session(daemon, driver, loop)
    let device = RecordingDevice()
    session.setDevice(device)
    session.connect()
    let backEnd = try session.waitUntilConnected()
    #expect(backEnd.configuration.load(UInt64.self, at: 0) == 2048)
    #expect(backEnd.features & FeatureBits.accessPlatform == 0)
    let features: UInt64 = 1 << 32
    #expect(session.start(queue: 0, driver.ring, features: features))
    driver.read(sector: 77)
    // The daemon also signals when it gets the descriptor.
    #expect(eventually { driver.call.event.take() && driver.usedIndex == 1 })
    #expect(driver.memory.loadUInt16(at: 0x4010).map { $0 & 0xff } == 0)
    #expect(driver.memory.loadUInt32(at: 0x5000) == 77)

    let stops = Notes<UInt16?>()
    #expect(session.stop(queue: 0) { stops.add($0) } == .pending)
    #expect(eventually { stops.all == [1] })
    var ring = driver.ring
    ring.startIndex = 1
    #expect(session.start(queue: 0, ring, features: features))
    driver.read(sector: 5)
    #expect(eventually { driver.usedIndex == 2 })
    #expect(driver.memory.loadUInt32(at: 0x5000) == 5)

    daemon.kill()
    #expect(eventually { driver.failures.value == 1 })
    #expect(eventually { device.lost.all.count == 1 })
    #expect(!session.start(queue: 0, ring, features: features))
    session.end()
  }

  @Test func `a daemon that is killed and started again serves the same driver`() throws {
    let daemon = StorageDaemon()
    try #require(daemon.start())
    let loop = try EventLoop(name: "test")
    defer { loop.stop() }
    let driver = try Driver()
    let session = session(daemon, driver, loop, interval: 100_000_000)
    let device = RecordingDevice()
    session.setDevice(device)
    session.connect()
    let backEnd = try session.waitUntilConnected()
    session.require(backEnd.features)
    #expect(session.start(queue: 0, driver.ring, features: 1 << 32))
    driver.read(sector: 77)
    #expect(eventually { driver.usedIndex == 1 })
    daemon.kill()
    try #require(daemon.start())
    #expect(eventually { device.connected.all.count == 2 })
    if !backEnd.protocolFeatures.contains(.inflight) {
      // The driver resets the device and starts anew.
      #expect(driver.failures.value == 1)
      var ring = driver.ring
      ring.startIndex = 1
      #expect(session.start(queue: 0, ring, features: 1 << 32))
    }
    driver.read(sector: 9)
    #expect(eventually { driver.usedIndex == 2 && driver.memory.loadUInt32(at: 0x5000) == 9 })
    session.end()
  }

  @Test func `a device behind an IOMMU is refused: the daemon has no ACCESS_PLATFORM`() throws {
    let daemon = StorageDaemon()
    try #require(daemon.start())
    let loop = try EventLoop(name: "test")
    defer { loop.stop() }
    let profile = DeviceProfile(queueCount: 1, queueSize: 16, queueCountWithoutReport: 1, usesTranslation: true)
    let session = VhostUserSession(
      profile, dialer: ClientDialer(path: daemon.socket, interval: nil, on: loop), on: loop)
    session.connect()
    #expect(throws: VhostUserError.lacksFeatures(FeatureBits.accessPlatform)) { try session.waitUntilConnected() }
  }
}
