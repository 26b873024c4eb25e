import Glibc
import Linux
import Testing

@Suite struct UnixSocketTests {
  private let folder = TemporaryFolder()

  private func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  /// Leaves a socket file as a killed process does. No process listens on this socket.
  private func leaveStale(_ path: String) throws {
    let saved = path + ".saved"
    do {
      let listener = try UnixListener(at: path)
      #expect(link(path, saved) == 0)
      _ = listener.rawValue
    }
    #expect(rename(saved, path) == 0)
    #expect(exists(path))
  }

  @Test("a connection carries bytes both ways") func connectsAndCarriesBytes() throws {
    let path = folder.file("socket")
    let listener = try UnixListener(at: path)
    let client = try FileDescriptor(connectingTo: path)
    let server = try listener.accept()
    try client.write([1, 2, 3])
    let there = try server.read(count: 16)
    #expect(there == [1, 2, 3])
    try server.write([4])
    let back = try client.read(count: 16)
    #expect(back == [4])
  }

  @Test("the socket file is removed with its listener") func goneWithItsOwner() throws {
    let path = folder.file("socket")
    do {
      let listener = try UnixListener(at: path)
      #expect(exists(path))
      _ = listener.rawValue
    }
    #expect(!exists(path))
    _ = try UnixListener(at: path)
  }

  @Test("a stale socket is replaced") func aStaleOneIsReplaced() throws {
    let path = folder.file("socket")
    try leaveStale(path)
    #expect(throws: SystemError.self) { _ = try FileDescriptor(connectingTo: path) }
    let listener = try UnixListener(at: path)
    _ = try FileDescriptor(connectingTo: path)
    _ = try listener.accept()
  }

  @Test("a live socket is refused") func aLiveOneIsRefused() throws {
    let path = folder.file("socket")
    let listener = try UnixListener(at: path)
    let error = #expect(throws: SystemError.self) { _ = try UnixListener(at: path) }
    #expect(error == SystemError("bind", path, code: EADDRINUSE))
    #expect(exists(path))
    _ = listener.rawValue
  }

  /// A full queue of connections does not make the socket stale, and the check must not wait.
  @Test("a live socket with a full queue is refused at once") func aLiveAndBusyOneIsRefusedAtOnce() throws {
    let path = folder.file("socket")
    let listener = try UnixListener(at: path)
    var waiting: [Int32] = []
    defer { for descriptor in waiting { close(descriptor) } }
    for _ in 0..<16 {
      let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
      waiting.append(descriptor)
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
      let answer = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
      if answer < 0, errno == EAGAIN { break }
    }
    let error = #expect(throws: SystemError.self) { _ = try UnixListener(at: path) }
    #expect(error?.code == EADDRINUSE)
    _ = listener.rawValue
  }

  @Test("a regular file at the path is not replaced") func anotherFileIsNotReplaced() throws {
    let path = folder.make("file", [1, 2, 3])
    let error = #expect(throws: SystemError.self) { _ = try UnixListener(at: path) }
    #expect(error?.code == EADDRINUSE)
    #expect(exists(path))
  }

  /// The path belongs to another file by now, so it stays.
  @Test("a file that replaced the socket is not removed") func anothersSocketStays() throws {
    let path = folder.file("socket")
    do {
      let listener = try UnixListener(at: path)
      unlink(path)
      _ = folder.make("socket", [7])
      _ = listener.rawValue
    }
    #expect(exists(path))
  }

  @Test("a path that no socket can have is an error") func pathsThatNoSocketCanHave() {
    let long = folder.file(String(repeating: "x", count: 108))
    #expect(throws: SystemError("bind", long, code: ENAMETOOLONG)) { _ = try UnixListener(at: long) }
    #expect(throws: SystemError.self) { _ = try FileDescriptor(connectingTo: long) }
    #expect(throws: SystemError.self) { _ = try UnixListener(at: "") }
    #expect(throws: SystemError.self) { _ = try UnixListener(at: "/tmp/a\0b") }
    #expect(throws: SystemError.self) { _ = try UnixListener(at: folder.file("no/such/folder")) }
  }

  @Test("a path of 107 bytes, the longest possible, works") func theLongestPath() throws {
    let path = folder.file(String(repeating: "x", count: 107 - folder.path.utf8.count - 1))
    #expect(path.utf8.count == 107)
    let listener = try UnixListener(at: path)
    _ = try FileDescriptor(connectingTo: path)
    _ = try listener.accept()
  }
}
