import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@testable import Machine

/// Several character devices on one loop, as in a machine.
@Suite(.timeLimit(.minutes(2))) struct ChardevLoopTests {
  private let loop: EventLoop
  private let folder = Folder()

  init() throws {
    signal(SIGPIPE, SIG_IGN)
    loop = try EventLoop(name: "chardev test")
  }

  /// A folder for sockets and a FIFO. The sockets' owners remove them.
  private final class Folder {
    let path = "/tmp/nestling-chardev-\(getpid())-\(UInt32.random(in: 0 ... .max))"
    init() { mkdir(path, 0o700) }
    deinit {
      unlink(path + "/fifo")
      rmdir(path)
    }
  }

  /// Takes at most `room` bytes, and notes on which loop it is called.
  private final class Frontend: ChardevFrontend {
    let mayBlock: Bool
    let received = Notes<UInt8>()
    let isOnSharedLoop = Notes<Bool>()
    /// Signalled when bytes arrive.
    let began = Semaphore()
    /// A call waits for it, if the frontend may block.
    let end = Semaphore()
    private let loop: EventLoop
    private let room: Mutex<Int>

    init(mayBlock: Bool = false, room: Int = .max, _ loop: EventLoop) {
      self.mayBlock = mayBlock
      self.loop = loop
      self.room = Mutex(room)
    }

    func connected() { isOnSharedLoop.add(loop.isCurrent) }
    func disconnected() { isOnSharedLoop.add(loop.isCurrent) }

    func receive(_ bytes: ArraySlice<UInt8>) -> Int {
      isOnSharedLoop.add(loop.isCurrent)
      let taken = room.withLock { room in
        defer { room -= min(room, bytes.count) }
        return bytes.prefix(room)
      }
      for byte in taken { received.add(byte) }
      began.signal()
      if mayBlock { end.wait() }
      return taken.count
    }
  }

  private func server(_ name: String, _ frontend: Frontend) throws -> Chardev {
    var options = SocketChardevOptions()
    options.path = folder.path + "/" + name
    options.server = true
    options.wait = false
    let device = try Chardev(options, on: loop)
    try device.attach(frontend)
    try device.start()
    return device
  }

  private func client(_ name: String) throws -> FileDescriptor {
    try FileDescriptor(connectingTo: folder.path + "/" + name)
  }

  @Test("a frontend that does not block is served by the shared loop")
  func sharedLoop() throws {
    let frontend = Frontend(loop)
    let device = try server("s", frontend)
    do { try client("s").write([1, 2, 3]) }
    #expect(eventually { frontend.received.all == [1, 2, 3] && frontend.isOnSharedLoop.all.count == 3 })
    #expect(frontend.isOnSharedLoop.all.allSatisfy { $0 })
    device.stop()
  }

  @Test("a frontend that blocks delays neither another device nor the end")
  func blockingFrontend() throws {
    let (slow, quick) = (Frontend(mayBlock: true, loop), Frontend(loop))
    let (first, second) = (try server("slow", slow), try server("quick", quick))
    let slowClient = try client("slow")
    let quickClient = try client("quick")
    try slowClient.write([1])
    slow.began.wait()
    try quickClient.write([2])
    #expect(eventually { quick.received.all == [2] })
    #expect(slow.isOnSharedLoop.all == [false, false])
    second.stop()
    first.stop()
    slow.end.signal()
    _ = slowClient.rawValue
    _ = quickClient.rawValue
  }

  @Test("a full FIFO delays no other device, and takes the rest once it is read")
  func fullFIFO() throws {
    let path = folder.path + "/fifo"
    #expect(mkfifo(path, 0o600) == 0)
    let reader = try FileDescriptor(opening: path, O_RDONLY | O_NONBLOCK)
    var options = FileChardevOptions()
    options.path = path
    let fifo = try Chardev(options, on: loop)
    let bytes = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ $0 >> 7) }
    #expect(fifo.write(bytes))
    let quick = Frontend(loop)
    let device = try server("quick", quick)
    let other = try client("quick")
    try other.write([7])
    #expect(eventually { quick.received.all == [7] })
    var seen: [UInt8] = []
    while seen.count < bytes.count, Poll.readable([reader.rawValue], milliseconds: 20_000)[0] {
      seen += try reader.read(count: 1 << 16) ?? []
    }
    #expect(seen == bytes)
    fifo.stop()
    device.stop()
    _ = other.rawValue
  }

  @Test("input that the frontend does not take costs no processor time after its sender has left")
  func untakenInput() throws {
    let frontend = Frontend(room: 1, loop)
    let device = try server("s", frontend)
    do { try client("s").write([UInt8](repeating: 5, count: 10_000)) }
    #expect(eventually { frontend.received.all == [5] })
    let before = processorTime
    usleep(100_000)
    #expect(processorTime - before < 50_000_000)
    device.stop()
  }

  /// The CPU time of the loop's thread in nanoseconds.
  private var processorTime: Int {
    let times = Notes<Int>()
    loop.perform {
      var time = timespec()
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
      times.add(time.tv_sec * 1_000_000_000 + time.tv_nsec)
    }
    return times.all[0]
  }
}
