import Glibc
import Hardware
import Linux
import TestSupport

@testable import VhostUser

/// A back end on a thread of the test, over a real connection. It follows the protocol, except where its script says
/// otherwise.
final class FakeBackEnd: @unchecked Sendable {
  struct Request: Sendable {
    let number: UInt32
    let flags: UInt32
    let payload: [UInt8]
    let descriptors: [PassedDescriptor]

    var request: FrontEndRequest? { FrontEndRequest(rawValue: number) }
    var value: UInt64 { payload.load(UInt64.self, at: 0) }
    var state: VringState { VringState(payload) }
  }

  enum Reaction: Sendable {
    case normal
    case silence
    /// Bytes and descriptors in place of the reply.
    case bytes([UInt8], [Int32])
    case close
  }

  struct Abilities: Sendable {
    var features: UInt64 = 1 << 30 | 1 << 32 | 1 << 29 | 1 << 9
    var protocolFeatures: UInt64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12
    var queueCount: UInt64 = 4
    var configuration = [UInt8](repeating: 0x5a, count: 16)
    /// The index that `VHOST_USER_GET_VRING_BASE` returns.
    var base: UInt32 = 7
  }

  let abilities: Abilities
  /// The front end's end of the connection.
  let connection: PassedDescriptor
  private let socket: PassedDescriptor
  private var requests = Notes<Request>()
  private let script: @Sendable (Request) -> Reaction
  private var thread: TestThread?
  /// The file of the inflight region that this back end has made.
  let inflightFile: PassedDescriptor

  init(
    _ abilities: Abilities = Abilities(), script: @escaping @Sendable (Request) -> Reaction = { _ in .normal }
  ) throws {
    self.abilities = abilities
    self.script = script
    (connection, socket) = try SocketPair().ends()
    inflightFile = PassedDescriptor(try FileDescriptor(opening: "/dev/zero", O_RDWR))
    thread = TestThread { [self] in run() }
  }

  /// Ends the connection, as a back end that dies.
  func die() {
    socket.file.shutDown()
    thread?.join()
    thread = nil
  }

  var log: [Request] { requests.all }

  /// Closes the descriptors of the log, after the back end has died.
  func forget() { requests = Notes() }
  var numbers: [FrontEndRequest?] { log.map(\.request) }

  func last(_ request: FrontEndRequest) -> Request? { log.last { $0.request == request } }

  /// The channel for this back end's requests.
  var channel: PassedDescriptor? { last(.setBackendReqFD)?.descriptors.first }

  private func run() {
    while let request = receive() {
      requests.add(request)
      switch script(request) {
      case .normal: reply(to: request)
      case .silence: break
      case .bytes(let bytes, let descriptors): send(bytes, with: descriptors, over: socket.rawValue)
      case .close: return socket.file.shutDown()
      }
    }
  }

  private func receive() -> Request? {
    var bytes: [UInt8] = []
    var descriptors: [PassedDescriptor] = []
    func read(until count: Int) -> Bool {
      while bytes.count < count {
        guard let (new, passed) = try? socket.file.receive(count: count - bytes.count), !new.isEmpty else {
          return false
        }
        bytes += new
        descriptors += passed
      }
      return true
    }
    guard read(until: 12), read(until: 12 + Int(bytes.load(UInt32.self, at: 8))) else { return nil }
    return Request(
      number: bytes.load(UInt32.self, at: 0), flags: bytes.load(UInt32.self, at: 4), payload: Array(bytes[12...]),
      descriptors: descriptors)
  }

  static func message(_ number: UInt32, flags: UInt32 = 5, _ payload: [UInt8]) -> [UInt8] {
    [UInt8](littleEndian: number, flags, UInt32(payload.count)) + payload
  }

  private func reply(to request: Request) {
    var descriptors: [Int32] = []
    let payload: [UInt8]
    switch request.request {
    case .getFeatures: payload = [UInt8](littleEndian: abilities.features)
    case .getProtocolFeatures: payload = [UInt8](littleEndian: abilities.protocolFeatures)
    case .getQueueNum: payload = [UInt8](littleEndian: abilities.queueCount)
    case .getConfig: payload = Array(request.payload[..<12]) + abilities.configuration
    case .getVringBase:
      payload = VringState(index: request.state.index, number: abilities.base).bytes
    case .getInflightFD:
      var description = InflightDescription(request.payload)
      description.size = 0x1000
      payload = description.bytes
      descriptors = [inflightFile.rawValue]
    case .getStatus: payload = [UInt8](littleEndian: UInt64(0xb))
    default:
      guard request.flags & 8 != 0 else { return }
      payload = [UInt8](littleEndian: UInt64(0))
    }
    send(Self.message(request.number, payload), with: descriptors, over: socket.rawValue)
  }
}

/// Hands out connections to back ends that the test has made.
final class ScriptedDialer: BackEndDialer {
  let reconnects: Bool
  private let loop: EventLoop
  private let connections: Notes<PassedDescriptor> = Notes()
  private let used = SharedInteger()
  private let timer: EventLoop.Timer

  init(_ backEnds: [FakeBackEnd], reconnects: Bool = false, on loop: EventLoop) {
    self.reconnects = reconnects
    self.loop = loop
    timer = EventLoop.Timer(on: loop)
    for backEnd in backEnds { connections.add(backEnd.connection) }
  }

  func add(_ backEnd: FakeBackEnd) { connections.add(backEnd.connection) }

  var dialCount: Int { used.value }

  func dial(_ deliver: @escaping @Sendable (Result<PassedDescriptor, SystemError>) -> Void) {
    timer.start(at: Clock.monotonic() + 1_000_000) { [self] in
      let index = used.value
      guard index < connections.all.count else { return dial(deliver) }
      used.increment()
      deliver(.success(connections.all[index]))
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

  func start(_ queue: Int, start: UInt16 = 0, used: UInt16? = 3) -> Bool {
    session.start(queue: queue, ring(start: start, used: used), features: Self.features)
  }
}
