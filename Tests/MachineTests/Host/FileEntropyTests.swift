import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@testable import Machine

/// virtio-rng takes bytes from a file of the host and never waits for that file.
@Suite(.timeLimit(.minutes(1))) struct FileEntropyTests {
  private let path = "/tmp/nestling-entropy-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"

  /// Takes up to `count` bytes after waiting for `onReady`.
  private func wait(_ source: FileEntropy, _ count: Int) -> [UInt8] {
    let isReady = Atomic<Bool>(true)
    source.onReady { isReady.store(true, ordering: .releasing) }
    var bytes = [UInt8](repeating: 0, count: count)
    var taken = 0
    #expect(
      eventually {
        if isReady.exchange(false, ordering: .acquiring) { taken = source.take(count, into: &bytes) }
        return taken > 0
      })
    return Array(bytes[..<taken])
  }

  @Test("a FIFO gives the bytes of its writers in turn, and nothing between them")
  func aFIFO() throws {
    #expect(mkfifo(path, 0o600) == 0)
    defer { unlink(path) }
    let source = try FileEntropy(opening: path)
    var bytes = [UInt8](repeating: 0, count: 8)
    #expect(source.take(8, into: &bytes) == 0)
    do {
      let writer = try FileDescriptor(opening: path, O_WRONLY)
      #expect(source.take(8, into: &bytes) == 0)
      try writer.write([1, 2, 3])
      #expect(wait(source, 8) == [1, 2, 3])
    }
    #expect(source.take(8, into: &bytes) == 0)
    let writer = try FileDescriptor(opening: path, O_WRONLY)
    try writer.write([UInt8](4..<20))
    #expect(wait(source, 8) == [UInt8](4..<12))
    #expect(wait(source, 8) == [UInt8](12..<20))
  }

  @Test("a file read to its end gives the bytes appended later, and no byte twice")
  func aFile() throws {
    let file = try FileDescriptor(opening: path, O_WRONLY | O_CREAT, mode: 0o600)
    defer { unlink(path) }
    try file.write([7, 8])
    let source = try FileEntropy(opening: path)
    #expect(wait(source, 64) == [7, 8])
    var bytes = [UInt8](repeating: 0, count: 8)
    #expect(source.take(8, into: &bytes) == 0)
    try file.write([9])
    #expect(wait(source, 8) == [9])
  }

  @Test("a character device gives all the bytes requested")
  func aDevice() throws {
    #expect(wait(try FileEntropy(opening: "/dev/urandom"), 5000).count == 5000)
  }

  @Test("a folder is refused as a source")
  func aFolder() {
    #expect(throws: SystemError("open", "/tmp", code: EISDIR)) { _ = try FileEntropy(opening: "/tmp") }
  }
}
