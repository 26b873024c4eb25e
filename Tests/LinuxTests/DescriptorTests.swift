import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@Suite struct EventDescriptorTests {
  private func expect(_ event: borrowing EventDescriptor, taken expected: Bool) {
    let taken = event.take()
    #expect(taken == expected)
  }

  @Test("one take clears all signals so far") func signalsAreTakenTogether() throws {
    let event = try EventDescriptor()
    expect(event, taken: false)
    event.signal()
    event.signal()
    #expect(Poll.readable([event.rawValue]) == [true])
    expect(event, taken: true)
    expect(event, taken: false)
    event.signal()
    event.wait()
    expect(event, taken: false)
  }

  @Test("a signal at the counter's limit neither blocks nor fails") func manySignalsDoNotBlock() throws {
    let event = try EventDescriptor()
    var almostFull = UInt64.max - 1
    #expect(write(event.rawValue, &almostFull, 8) == 8)
    // One more exceeds the counter; signalling must neither wait nor fail.
    event.signal()
    event.wait()
    expect(event, taken: false)
  }

  @Test("a signal wakes the thread that waits for it") func aThreadWaitsForIt() throws {
    let (there, back) = (Shared(try EventDescriptor()), Shared(try EventDescriptor()))
    let thread = try Thread(name: "echo") {
      for _ in 0..<100 {
        there.value.wait()
        back.value.signal()
      }
    }
    for _ in 0..<100 {
      there.value.signal()
      back.value.wait()
    }
    thread.join()
    expect(there.value, taken: false)
    expect(back.value, taken: false)
  }

  /// A descriptor that two threads share.
  private final class Shared: Sendable {
    let value: EventDescriptor
    init(_ value: consuming EventDescriptor) { self.value = value }
  }
}

@Suite struct FileDescriptorTests {
  // The expectation macros copy their operands, and a descriptor cannot be copied.
  private func read(_ file: borrowing FileDescriptor, _ count: Int) throws -> [UInt8]? { try file.read(count: count) }
  private func some(_ file: borrowing FileDescriptor, _ bytes: [UInt8], from offset: Int) throws -> Int {
    try file.writeSome(bytes, from: offset)
  }

  private let folder = TemporaryFolder()

  @Test("a descriptor is closed with its owner") func closesWhenItsOwnerGoes() throws {
    var number: Int32 = -1
    do {
      let file = try FileDescriptor(opening: "/dev/null", O_RDONLY)
      number = file.rawValue
      #expect(fcntl(number, F_GETFD) == FD_CLOEXEC)
    }
    // Another test's thread may have reused the number by now, but for another file.
    var status = stat()
    var null = stat()
    stat("/dev/null", &null)
    #expect(fstat(number, &status) < 0 || status.st_rdev != null.st_rdev || status.st_ino != null.st_ino)
  }

  @Test("an error names the path that cannot be opened") func whatCannotBeOpenedIsNamed() {
    #expect(throws: SystemError("open", folder.file("missing"), code: ENOENT)) {
      _ = try FileDescriptor(opening: folder.file("missing"), O_RDONLY)
    }
    #expect(throws: SystemError.self) { _ = try FileDescriptor(duplicating: -1) }
  }

  @Test("reads return the bytes up to the end, and then none") func readsUntilTheEnd() throws {
    let file = try FileDescriptor(opening: folder.make("three", [1, 2, 3]), O_RDONLY)
    #expect(try read(file, 2) == [1, 2])
    #expect(try read(file, 2) == [3])
    #expect(try read(file, 2) == [])
    #expect(throws: SystemError.self) { try file.write([1]) }
    #expect(throws: SystemError.self) { _ = try file.writeSome([1], from: 0) }
  }

  @Test("write writes all bytes, and writeSome at most 4 KiB") func writesAllOrSome() throws {
    let path = folder.make("out", [])
    let file = try FileDescriptor(opening: path, O_RDWR)
    let bytes = (0..<10_000).map { UInt8(truncatingIfNeeded: $0) }
    try file.write(bytes)
    #expect(try some(file, bytes, from: 0) == 4096)
    #expect(try some(file, bytes, from: 9_999) == 1)
    #expect(try some(file, bytes, from: 10_000) == 0)
    #expect(try some(file, bytes, from: 20_000) == 0)
    #expect(try some(file, [], from: 0) == 0)
    let again = try FileDescriptor(opening: path, O_RDONLY)
    #expect(try read(again, 100_000) == bytes + bytes[..<4096] + [bytes[9_999]])
  }

  @Test("a read without data is nil, and a write to a full pipe writes nothing") func nothingNowIsNil() throws {
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    for end in ends { #expect(fcntl(end, F_SETFL, O_NONBLOCK) == 0) }
    let reader = FileDescriptor(owning: ends[0])
    let writer = FileDescriptor(owning: ends[1])
    #expect(try read(reader, 1) == nil)
    // Writing to a full pipe neither fails nor waits.
    var total = 0
    let block = [UInt8](repeating: 1, count: 4096)
    while true {
      let count = try writer.writeSome(block, from: 0)
      if count == 0 { break }
      total += count
    }
    #expect(total > 0)
    #expect(!Poll.writable(writer.rawValue, milliseconds: 0))
    #expect(try read(reader, 4096)?.count == 4096)
    #expect(Poll.writable(writer.rawValue, milliseconds: 0))
  }

  @Test("signals do not end a wait for room or for input", arguments: [true, false])
  func signalsDoNotEndAWait(forRoom: Bool) throws {
    signal(SIGUSR2) { _ in }
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    for end in ends { #expect(fcntl(end, F_SETFL, O_NONBLOCK) == 0) }
    let reader = FileDescriptor(owning: ends[0])
    let writer = FileDescriptor(owning: ends[1])
    let block = [UInt8](repeating: 1, count: 4096)
    if forRoom { while try writer.writeSome(block, from: 0) > 0 {} }
    let (input, output) = (reader.rawValue, writer.rawValue)
    let thread = WaitingThread {
      forRoom ? Poll.writable(output, milliseconds: -1) : Poll.readable([input])[0]
    }
    #expect(eventually { thread.identifier != nil })
    for _ in 0..<20 {
      usleep(2000)
      if thread.answer == nil, let identifier = thread.identifier { pthread_kill(identifier, SIGUSR2) }
    }
    #expect(thread.answer == nil)
    if forRoom { _ = try read(reader, 1 << 20) } else { _ = try some(writer, block, from: 0) }
    thread.join()
    #expect(thread.answer == true)
  }

  /// A thread that waits, known by its identifier.
  private final class WaitingThread: Sendable {
    private let state = Mutex((identifier: pthread_t?.none, answer: Bool?.none))
    private let thread = Mutex<TestThread?>(nil)

    init(_ wait: @escaping @Sendable () -> Bool) {
      let thread = TestThread { [self] in
        // The threads on which tests run block signals, and new threads inherit that.
        var signals = sigset_t()
        sigaddset(&signals, SIGUSR2)
        pthread_sigmask(SIG_UNBLOCK, &signals, nil)
        state.withLock { $0.identifier = pthread_self() }
        let answer = wait()
        state.withLock { $0.answer = answer }
      }
      self.thread.withLock { $0 = thread }
    }

    var identifier: pthread_t? { state.withLock { $0.identifier } }
    var answer: Bool? { state.withLock { $0.answer } }
    func join() { thread.withLock { $0.take() }?.join() }
  }
}

@Suite struct ThreadTests {
  @Test("a kick interrupts a blocking read") func aKickInterruptsABlockingRead() throws {
    Thread.installKick()
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    let (reader, writer) = (ends[0], ends[1])
    do {
      let shared = Box()
      let thread = try Thread(name: "blocked") {
        var byte: UInt8 = 0
        let count = read(reader, &byte, 1)
        let code = errno
        shared.result.withLock { $0 = (count, code) }
        shared.ended.store(true, ordering: .releasing)
      }
      // A kick may come before the read begins, so kick until the read has returned.
      while !shared.ended.load(ordering: .acquiring) {
        thread.kick()
        usleep(1_000)
      }
      thread.join()
      let seen = shared.result.withLock { $0 }
      #expect(seen.count == -1)
      #expect(seen.code == EINTR)
    }
    close(reader)
    close(writer)
  }

  private final class Box: Sendable {
    let result = Mutex<(count: Int, code: Int32)>((0, 0))
    let ended = Atomic<Bool>(false)
  }

  @Test("a thread has the given name, cut to 15 bytes, and its own thread ID") func threadsHaveNamesAndNumbers()
    throws
  {
    let box = Names()
    for name in ["serial", "a name that is longer than the kernel keeps", "näme with ümläuts"] {
      let thread = try Thread(name: name) {
        let file = try? FileDescriptor(opening: "/proc/thread-self/comm", O_RDONLY)
        let text = String(decoding: (try? file?.read(count: 64)) ?? [], as: UTF8.self).split(separator: "\n").first
        box.seen.withLock { $0.append((String(text ?? ""), Thread.currentID)) }
      }
      thread.join()
    }
    let all = box.seen.withLock { $0 }
    #expect(all.map(\.name).prefix(2) == ["serial", "a name that is "])
    #expect(all.count == 3)
    #expect(all[2].name.hasPrefix("n"))
    #expect(all.allSatisfy { $0.id > 0 && $0.id != Thread.currentID })
  }

  private final class Names: Sendable {
    let seen = Mutex<[(name: String, id: Int)]>([])
  }
}

@Suite struct SystemErrorTests {
  @Test("an unknown errno has a text, too") func texts() {
    #expect(SystemError("open", "/etc/x", code: EACCES).errnoText == "Permission denied")
    #expect(SystemError("x", code: 12345).errnoText == "Unknown error 12345")
  }

  @Test("a negative result becomes an error, and any other result is returned") func answersBecomeValuesOrErrors()
    throws
  {
    #expect(try checked(7, "x") == 7)
    #expect(try checked(0, "x") == 0)
    let error = #expect(throws: SystemError.self) { try checked(-ENOSPC, "fallocate", "disk") }
    #expect(error == SystemError("fallocate", "disk", code: ENOSPC))
  }

  @Test("the monotonic clock does not go back, and the real-time clock has a plausible date") func clocksGoForward() {
    let first = Clock.monotonic()
    #expect(Clock.monotonic() >= first)
    // 2020 to 2100.
    #expect((1_577_836_800_000_000_000..<4_102_444_800_000_000_000).contains(Clock.realtime()))
  }
}
