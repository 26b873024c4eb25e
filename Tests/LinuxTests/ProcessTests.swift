import Glibc
import Linux
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(1))) struct ProcessTests {
  @Test("asking for a signal at the parent's end fails if the parent has already ended") func parent() throws {
    let signals = try TerminationSignals()
    #expect(throws: SystemError("prctl", code: ESRCH, cause: .parentEnded)) { try signals.includeEndOfParent(getpid()) }
  }

  @Test("join interrupts a thread that is blocked in a write") func patience() throws {
    signal(SIGPIPE, SIG_IGN)
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    let writer = ends[1]
    let thread = try Thread(name: "writer") {
      let bytes = [UInt8](repeating: 0, count: 1 << 20)
      _ = write(writer, bytes, bytes.count)
      let _ = write(writer, bytes, bytes.count)
    }
    #expect(thread.join(patience: 50))
    close(ends[0])
    close(ends[1])
  }

  @Test("a thread that is never joined frees its stack when it ends") func stacks() throws {
    let places = Mutex(Set<UInt>())
    let count = 24
    for _ in 0..<count {
      let ended = try EventDescriptor()
      let raw = ended.rawValue
      _ = try Thread(name: "alone") {
        var one: UInt64 = 1
        withUnsafePointer(to: &one) { place in places.withLock { _ = $0.insert(UInt(bitPattern: place)) } }
        write(raw, &one, 8)
      }
      ended.wait()
      // Give the thread time to end.
      usleep(5000)
    }
    #expect(places.withLock { $0.count } < count)
  }

  @Test("join gives up on a thread that does not end") func impatience() throws {
    let event = try EventDescriptor()
    let raw = event.rawValue
    let ended = try EventDescriptor()
    let endedRaw = ended.rawValue
    let thread = try Thread(name: "stuck") {
      while !Poll.readable([raw])[0] {}
      var one: UInt64 = 1
      write(endedRaw, &one, 8)
    }
    #expect(!thread.join(patience: 10))
    event.signal()
    ended.wait()
  }
}
