import Glibc
import Hardware
import Linux
import Synchronization
import TestSupport
import VhostUser

/// A back end on a thread of the test, over a real connection. It follows the protocol, except where its script says
/// otherwise.
public final class FakeBackEnd: @unchecked Sendable {
  public struct Request: Sendable {
    public let number: UInt32
    public let flags: UInt32
    public let payload: [UInt8]
    public let descriptors: [PassedDescriptor]

    public var request: FrontEndRequest? { FrontEndRequest(rawValue: number) }
    public var value: UInt64 { payload.load(UInt64.self, at: 0) }
  }

  public enum Reaction: Sendable {
    case normal
    case silence
    /// Bytes and descriptors in place of the reply.
    case bytes([UInt8], [Int32])
    case close
  }

  public struct Abilities: Sendable {
    public var features: UInt64 = 1 << 30 | 1 << 32 | 1 << 29 | 1 << 9
    public var protocolFeatures: UInt64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12
    public var queueCount: UInt64 = 4
    public var configuration = [UInt8](repeating: 0x5a, count: 16)
    /// The index that `VHOST_USER_GET_VRING_BASE` returns.
    public var base: UInt32 = 7

    public init() {}
  }

  public let abilities: Abilities
  /// The front end's end of the connection, until the dialer takes it.
  private let connection: Mutex<PassedDescriptor?>
  /// Nil until a front end has connected.
  private let socket: Mutex<PassedDescriptor?>
  private var requests = Notes<Request>()
  private let script: @Sendable (Request) -> Reaction
  private var thread: TestThread?
  /// The file of the inflight region that this back end has made.
  public let inflightFile: PassedDescriptor

  /// Makes a back end with a connection for one front end.
  public init(
    _ abilities: Abilities = Abilities(), script: @escaping @Sendable (Request) -> Reaction = { _ in .normal }
  ) throws {
    self.abilities = abilities
    self.script = script
    let (there, here) = try SocketPair().ends()
    connection = Mutex(there)
    socket = Mutex(here)
    inflightFile = PassedDescriptor(try FileDescriptor(opening: "/dev/zero", O_RDWR))
    thread = TestThread { [self] in run(here) }
  }

  /// Makes a back end that waits at a path for one front end.
  public init(
    at path: String, _ abilities: Abilities, script: @escaping @Sendable (Request) -> Reaction = { _ in .normal }
  ) throws {
    self.abilities = abilities
    self.script = script
    connection = Mutex(nil)
    socket = Mutex(nil)
    inflightFile = PassedDescriptor(try FileDescriptor(opening: "/dev/zero", O_RDWR))
    let listener = Listener(try UnixListener(at: path))
    thread = TestThread { [self] in
      guard Poll.readable([listener.socket.rawValue], milliseconds: 20_000) == [true],
        let accepted = try? PassedDescriptor(listener.socket.accept())
      else { return }
      socket.withLock { $0 = accepted }
      run(accepted)
    }
  }

  private final class Listener: Sendable {
    let socket: UnixListener
    init(_ socket: consuming UnixListener) { self.socket = socket }
  }

  public func takeConnection() -> PassedDescriptor? { connection.withLock { $0.take() } }

  /// Ends the connection, as a back end that dies.
  public func die() {
    socket.withLock { $0 }?.file.shutDown()
    thread?.join()
    thread = nil
  }

  public var log: [Request] { requests.all }

  /// Closes the descriptors of the log, after the back end has died.
  public func forget() { requests = Notes() }
  public var numbers: [FrontEndRequest?] { log.map(\.request) }

  public func last(_ request: FrontEndRequest) -> Request? { log.last { $0.request == request } }

  /// The channel for this back end's requests.
  public var channel: PassedDescriptor? { last(.setBackendReqFD)?.descriptors.first }

  private func run(_ socket: PassedDescriptor) {
    while let request = receive(socket) {
      requests.add(request)
      switch script(request) {
      case .normal: reply(to: request, over: socket)
      case .silence: break
      case .bytes(let bytes, let descriptors): send(bytes, with: descriptors, over: socket.rawValue)
      case .close: return socket.file.shutDown()
      }
    }
  }

  private func receive(_ socket: PassedDescriptor) -> Request? {
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

  public static func message(_ number: UInt32, flags: UInt32 = 5, _ payload: [UInt8]) -> [UInt8] {
    [UInt8](littleEndian: number, flags, UInt32(payload.count)) + payload
  }

  private func reply(to request: Request, over socket: PassedDescriptor) {
    var descriptors: [Int32] = []
    let payload: [UInt8]
    switch request.request {
    case .getFeatures: payload = [UInt8](littleEndian: abilities.features)
    case .getProtocolFeatures: payload = [UInt8](littleEndian: abilities.protocolFeatures)
    case .getQueueNum: payload = [UInt8](littleEndian: abilities.queueCount)
    case .getConfig: payload = Array(request.payload[..<12]) + abilities.configuration
    case .getVringBase:
      payload = Array(request.payload[..<4]) + [UInt8](littleEndian: abilities.base)
    case .getInflightFD:
      // The size of the region; the rest as it was asked for.
      payload = [UInt8](littleEndian: UInt64(0x1000)) + request.payload[8...]
      descriptors = [inflightFile.rawValue]
    case .getStatus: payload = [UInt8](littleEndian: UInt64(0xb))
    default:
      guard request.flags & 8 != 0 else { return }
      payload = [UInt8](littleEndian: UInt64(0))
    }
    send(Self.message(request.number, payload), with: descriptors, over: socket.rawValue)
  }
}
