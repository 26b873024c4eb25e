import Glibc
import Linux
import Synchronization
import Testing

/// Opening and connecting can be interrupted: the wait ends when a given descriptor has input.
@Suite(.timeLimit(.minutes(1))) struct OpeningTests {
  private let folder = TemporaryFolder()

  private func fifo() -> String {
    let path = folder.file("fifo")
    #expect(mkfifo(path, 0o600) == 0)
    return path
  }

  private func signalled() throws -> EventDescriptor {
    let event = try EventDescriptor()
    event.signal()
    return event
  }

  @Test("an image is a regular file or a block device, and a FIFO is refused without waiting") func images() throws {
    let path = fifo()
    for flags in [O_RDONLY, O_RDWR] {
      #expect(throws: SystemError("open", path, code: EINVAL, cause: .notAnImage)) {
        _ = try FileDescriptor(openingImage: path, flags)
      }
    }
    #expect(throws: SystemError.self) { _ = try FileDescriptor(openingImage: "/dev/zero", O_RDONLY) }
    #expect(throws: SystemError("open", folder.path, code: EISDIR)) {
      _ = try FileDescriptor(openingImage: folder.path, O_RDONLY)
    }
    let file = try FileDescriptor(openingImage: folder.make("image", [1, 2]), O_RDONLY)
    #expect(fcntl(file.rawValue, F_GETFL) & O_NONBLOCK == 0)
  }

  @Test("opening a FIFO for output waits until it has a reader or the wait is interrupted") func output() throws {
    let path = fifo()
    let event = try signalled()
    #expect(throws: SystemError("open", path, code: EINTR)) {
      _ = try FileDescriptor(openingOutput: path, 0, patience: Patience(until: event.rawValue))
    }
    #expect(throws: SystemError("open", path, code: ENXIO, cause: .noReader)) {
      _ = try FileDescriptor(openingOutput: path, 0)
    }
    event.take()
    let reader = try Thread(name: "reader") {
      usleep(100_000)
      if let reader = try? FileDescriptor(opening: path, O_RDONLY) { _ = try? reader.read(count: 1) }
    }
    let file = try FileDescriptor(openingOutput: path, 0, patience: Patience(until: event.rawValue))
    try file.write([1])
    reader.join()
  }

  @Test("a write to a FIFO with a slow reader waits for room and loses nothing") func aSlowReader() throws {
    let path = fifo()
    let reader = try FileDescriptor(openingSource: path)
    let file = try FileDescriptor(openingOutput: path, 0)
    let text = (0..<1 << 18).map { UInt8(truncatingIfNeeded: $0 >> 8) }
    let seen = Mutex<[UInt8]>([])
    let raw = reader.rawValue
    let thread = try Thread(name: "reader") {
      let reader = FileDescriptor(owning: dup(raw))
      while seen.withLock({ $0.count }) < text.count, Poll.readable([raw], milliseconds: 5000)[0] {
        usleep(1000)
        let more = (try? reader.read(count: 8192)) ?? []
        seen.withLock { $0 += more }
      }
    }
    try file.write(text)
    thread.join()
    #expect(seen.withLock { $0 } == text)
  }

  @Test("connecting to a server with a full queue waits until it is interrupted") func aBusyServer() throws {
    let path = folder.file("socket")
    let listener = try UnixListener(at: path)
    let event = try signalled()
    var clients: [Int32] = []
    defer { for client in clients { close(client) } }
    let error = #expect(throws: SystemError.self) {
      while clients.count < 100 {
        let client = try FileDescriptor(connectingTo: path, patience: Patience(until: event.rawValue))
        clients.append(dup(client.rawValue))
      }
    }
    #expect(error == SystemError("connect", path, code: EINTR) && clients.count > 0)
    _ = listener.rawValue
  }

  @Test("accepting without a client fails with EAGAIN") func anIdleListener() throws {
    let listener = try UnixListener(at: folder.file("socket"))
    let error = #expect(throws: SystemError.self) { _ = try listener.accept() }
    #expect(error?.code == EAGAIN)
  }
}
