import FakeVhostUser
import Glibc
import Hardware
import Linux
import Synchronization
import TestSupport

@testable import VhostUser

extension FakeBackEnd.Request {
  var state: VringState { VringState(payload) }
}

/// Hands out connections to back ends that the test has made.
final class ScriptedDialer: BackEndDialer {
  let reconnects: Bool
  private let waiting: Mutex<[PassedDescriptor]>
  private let timer: EventLoop.Timer

  init(_ backEnds: [FakeBackEnd], reconnects: Bool = false, on loop: EventLoop) {
    self.reconnects = reconnects
    timer = EventLoop.Timer(on: loop)
    waiting = Mutex(backEnds.compactMap { $0.takeConnection() })
  }

  func add(_ backEnd: FakeBackEnd) {
    if let connection = backEnd.takeConnection() { waiting.withLock { $0.append(connection) } }
  }

  func dial(_ deliver: @escaping @Sendable (Result<PassedDescriptor, SystemError>) -> Void) {
    timer.start(at: Clock.monotonic() + 1_000_000) { [self] in
      let connection = waiting.withLock { $0.isEmpty ? nil : $0.removeFirst() }
      guard let connection else { return dial(deliver) }
      deliver(.success(connection))
    }
  }

  func cancel() { timer.stop() }
}

/// A device that records what its session reports.
final class RecordingDevice: VhostUserDevice {
  let connected = Notes<BackEnd>()
  let lost = Notes<VhostUserError>()
  let configurations = Notes<[UInt8]>()
  let misses = Notes<UInt64>()

  func backEndConnected(_ backEnd: BackEnd) { connected.add(backEnd) }
  func backEndLost(_ error: VhostUserError, isFinal: Bool) { lost.add(error) }
  func configurationChanged(_ bytes: [UInt8]) { configurations.add(bytes) }
  func translationMissed(address: UInt64, permissions: UInt8) { misses.add(address) }
}

/// A session with its loop, its back ends and 16 MiB of RAM.
final class TestSession {
  let loop: EventLoop
  let dialer: ScriptedDialer
  let session: VhostUserSession
  let device = RecordingDevice()
  let memory: GuestMemory
  let failures = SharedInteger()
  let kick: PassedDescriptor

  init(
    _ backEnds: [FakeBackEnd], reconnects: Bool = false, patience: UInt64 = 2_000_000_000,
    _ change: (inout DeviceProfile) -> Void = { _ in }
  ) throws {
    loop = try EventLoop(name: "test")
    memory = try GuestMemory(size: 16 << 20, lowLimit: 16 << 20, backing: .shared)
    kick = PassedDescriptor(try FileDescriptor(opening: "/dev/null", O_RDWR))
    dialer = ScriptedDialer(backEnds, reconnects: reconnects, on: loop)
    var profile = DeviceProfile(queueCount: 2, queueSize: 128, queueCountWithoutReport: 2)
    profile.patience = patience
    profile.configurationSize = 16
    profile.memory = MemoryRegion.regions(of: memory) ?? []
    change(&profile)
    session = VhostUserSession(profile, dialer: dialer, on: loop)
    session.setDevice(device)
    session.connect()
  }

  deinit {
    session.end()
    loop.stop()
  }

  func ring(start: UInt16 = 0, used: UInt16? = 3) -> Ring {
    let descriptor = SharedDescriptor(kick.rawValue, owner: kick)
    return Ring(
      size: 128, descriptorArea: 0x1000, driverArea: 0x2000, deviceArea: 0x3000, startIndex: start, kick: descriptor,
      call: descriptor, usedIndex: { used }, fail: { [failures] in failures.increment() })
  }

  static let features: UInt64 = 1 << 32 | 1 << 29 | 1 << 9 | 1 << 40

  func start(_ queue: Int, start: UInt16 = 0, used: UInt16? = 3, features: UInt64 = features) -> Bool {
    session.start(queue: queue, ring(start: start, used: used), features: features)
  }
}
