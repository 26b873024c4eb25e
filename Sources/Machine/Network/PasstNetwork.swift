import Devices
import Glibc
import Hardware
import Linux
import Synchronization

/// A netdev whose peer is a passt that this backend starts and ends: `-netdev passt` and `-netdev user`.
///
/// passt gets one end of a pair of sockets, which carry frames as for `-netdev stream`. It writes its process id to a
/// pipe when it is ready (`--pid`); then the link goes up. The pipe is its standard output: of the other descriptors, a
/// newer passt keeps only `--fd`. passt ends when its socket is closed, so it ends with this
/// process even if that is killed. When passt ends by itself, the link stays down.
///
/// Lock order: `state` is a leaf.
final class PasstNetwork: NetdevBackend {
  private enum Phase {
    case starting
    case ready
    case ended(ProgramFailure)
    case closed
  }

  private struct State {
    var phase = Phase.starting
    /// Waits for the process id.
    var readiness: EventLoop.Registration?
    /// The thread that waits for the end of the start.
    var waiter: Linux.Semaphore?
  }

  private final class Reader: Sendable {
    let file: FileDescriptor
    init(_ file: consuming FileDescriptor) { self.file = file }
  }

  private let id: Identifier
  private let name: String
  private let stream: StreamNetwork
  private let host: NetdevHost
  private let state = Mutex(State())
  /// Set at the end of `init`; nil from `close` on.
  private let program = Mutex<ChildProcess?>(nil)

  init(id: Identifier, _ command: PasstCommand, on host: NetdevHost) throws(NetdevOpenError) {
    self.id = id
    self.host = host
    name = command.program
    do throws(SystemError) {
      let sockets = try FileDescriptor.socketPair()
      let far = FileDescriptor(owning: sockets.far)
      stream = StreamNetwork(id: id, connected: FileDescriptor(owning: sockets.near), on: host)
      // Root's passt changes its user before it opens the file.
      let pipe = try FileDescriptor.pipe(anyUserWrites: true)
      let writer = FileDescriptor(owning: pipe.writer)
      let reader = Reader(FileDescriptor(owning: pipe.reader))
      let readiness = try host.loop.register(reader.file.rawValue, []) { [weak self] _ in self?.takeReadiness(reader) }
      state.withLock { $0.readiness = readiness }
      let own = ["--foreground", "--quiet", "--fd", "3", "--pid", "/proc/self/fd/1"]
      let child = try ChildProcess(
        starting: command.program, own + command.arguments, passing: [far.rawValue], output: writer.rawValue,
        on: host.loop
      ) { [weak self] in self?.takeEnd($0, $1) }
      program.withLock { $0 = child }
      readiness.setInterest(.readable)
      // passt has its own descriptors now.
      withExtendedLifetime(far) {}
      withExtendedLifetime(writer) {}
    } catch {
      let isName = !command.program.utf8.contains(UInt8(ascii: "/"))
      if isName, error == SystemError("execve", command.program, code: ENOENT) { throw .notInstalled(command.program) }
      throw .program(command.program, error)
    }
  }

  // MARK: NetdevBackend

  var link: NetdevLink { stream.link }
  var capabilities: NetworkCapabilities { stream.capabilities }

  var status: NetdevStatus {
    switch state.withLock({ $0.phase }) {
    case .starting: .connecting
    case .ready: if let child = program.withLock({ $0 }) { .process(child.processID) } else { .connecting }
    case .ended(let failure): .ended(failure)
    case .closed: .closed
    }
  }

  func awaitStart(patience nanoseconds: UInt64) throws(NetdevOpenError) {
    let waiter = state.withLock { state -> Linux.Semaphore? in
      guard case .starting = state.phase else { return nil }
      let waiter = Linux.Semaphore()
      state.waiter = waiter
      return waiter
    }
    if let waiter {
      let timer = EventLoop.Timer(on: host.loop)
      timer.start(at: Clock.monotonic() &+ nanoseconds) { waiter.signal() }
      waiter.wait()
      timer.stop()
    }
    if case .ended(let failure) = state.withLock({ $0.phase }) { throw .ended(failure) }
  }

  func close() {
    let readiness = state.withLock { state in
      state.phase = .closed
      defer { state.readiness = nil }
      return state.readiness
    }
    readiness?.cancel()
    // From now on only the loop holds the process, so its end kills a passt that ignores SIGTERM.
    program.withLock { $0.take() }?.stop()
    stream.close()
  }

  func setOffloads(_ offloads: NetworkOffloads) {}
  func setActivePairs(_ count: Int) {}

  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult {
    stream.send(header, segments, pair: pair)
  }

  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int { stream.receive(into: &packet, pair: pair) }

  // MARK: The loop's thread

  private func takeReadiness(_ reader: Reader) {
    let text = (try? reader.file.read(count: 32)) ?? []
    let (isReady, readiness, waiter) = state.withLock { state -> (Bool, EventLoop.Registration?, Linux.Semaphore?) in
      defer { state.readiness = nil }
      guard case .starting = state.phase, !text.isEmpty else { return (false, state.readiness, nil) }
      state.phase = .ready
      return (true, state.readiness, state.waiter)
    }
    // Without text, passt has closed the pipe, and its end will be reported.
    readiness?.cancel()
    if isReady { stream.beginConnected() }
    waiter?.signal()
  }

  private func takeEnd(_ end: ChildProcess.End, _ lines: [String]) {
    let failure = ProgramFailure(program: name, end: end, reason: ProgramFailure.reason(in: lines, of: name))
    let (isReported, waiter) = state.withLock { state -> (Bool, Linux.Semaphore?) in
      if case .closed = state.phase { return (false, state.waiter) }
      state.phase = .ended(failure)
      return (true, state.waiter)
    }
    // The end of its socket takes the link down.
    if isReported { host.notify(.netdevProgramEnded(id, failure)) }
    waiter?.signal()
  }
}

/// The end of a netdev's program without a request.
public struct ProgramFailure: Error, Hashable, Sendable {
  public let program: String
  public let end: ChildProcess.End
  /// The line of its standard error that explains the end; nil if there is none.
  public let reason: String?

  public init(program: String, end: ChildProcess.End, reason: String?) {
    self.program = program
    self.end = end
    self.reason = reason
  }

  /// Returns the line that explains a failure: getopt(3)'s line, which the usage text follows, or else the last line
  /// that is not one of passt's usual messages.
  static func reason(in lines: [String], of program: String) -> String? {
    let usual = ["Failed to send ", "Don't run as root"]
    let name = program.split(separator: "/").last.map(String.init) ?? program
    return lines.first { $0.hasPrefix(program + ": ") || $0.hasPrefix(name + ": ") }
      ?? lines.last { line in !usual.contains { line.hasPrefix($0) } }
  }
}

extension NetdevOpening where Self: PasstStarting {
  func open(on host: NetdevHost) throws(NetdevOpenError) -> any NetdevBackend {
    guard let id else { throw .system(SystemError("netdev", code: EINVAL)) }
    return try PasstNetwork(id: id, command, on: host)
  }
}

extension PasstNetdevOptions: NetdevOpening {}
extension UserNetdevOptions: NetdevOpening {}
