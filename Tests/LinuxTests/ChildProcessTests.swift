import Glibc
import Synchronization
import TestSupport
import Testing

@testable import Linux

/// Starts small programs of the host.
@Suite(.timeLimit(.minutes(2))) struct ChildProcessTests {
  private let loop: EventLoop
  private let ends = Notes<ChildProcess.End>()

  init() throws { loop = try EventLoop(name: "child test") }

  private func start(
    _ name: String, _ arguments: [String], passing descriptors: [Int32] = []
  ) throws -> ChildProcess {
    try ChildProcess(starting: name, arguments, passing: descriptors, on: loop) { [ends] end, _ in ends.add(end) }
  }

  private func shell(_ script: String, passing descriptors: [Int32] = []) throws -> ChildProcess {
    try start("sh", ["-c", script], passing: descriptors)
  }

  /// Whether a process exists that is not a zombie.
  private func runs(_ process: Int32) -> Bool {
    guard let text = try? FileDescriptor(opening: "/proc/\(process)/stat", O_RDONLY).read(count: 4096) else {
      return false
    }
    return !String(decoding: text, as: UTF8.self).contains(") Z ")
  }

  @Test func `a program's status and the end of its standard error reach the owner`() throws {
    let child = try shell("echo one >&2; echo >&2; echo two >&2; exit 3")
    #expect(eventually { ends.all == [.exited(status: 3)] })
    #expect(child.end == .exited(status: 3) && child.lastLines == ["one", "two"])
    #expect(!runs(child.processID))
    // The id is free: the process is no zombie.
    #expect(kill(child.processID, 0) < 0 && errno == ESRCH)
  }

  @Test func `a signal that ends the program is reported as such`() throws {
    let child = try shell("kill -USR1 $$; sleep 60")
    #expect(eventually { ends.all == [.killed(signal: SIGUSR1)] })
    withExtendedLifetime(child) {}
  }

  @Test func `a program that does not exist is an error at once`() throws {
    #expect(throws: SystemError("execve", "nestling-no-such-program", code: ENOENT)) {
      try start("nestling-no-such-program", [])
    }
    #expect(throws: SystemError("execve", "/etc/passwd", code: EACCES)) { try start("/etc/passwd", []) }
  }

  @Test func `a program has the passed descriptors from 3 on, and no others`() throws {
    let (reader, writer) = try FileDescriptor.pipe()
    let from = FileDescriptor(owning: reader)
    let to = FileDescriptor(owning: writer)
    // An open descriptor without close-on-exec.
    let stray = dup(to.rawValue)
    defer { close(stray) }
    let child = try shell("ls /proc/self/fd | tr '\\n' ' ' >&4", passing: [to.rawValue, to.rawValue])
    #expect(eventually { ends.all.count == 1 })
    // `ls` itself opens the folder, as the first free number.
    #expect(try from.read(count: 100).map { String(decoding: $0, as: UTF8.self) } == "0 1 2 3 4 5 ")
    withExtendedLifetime(child) {}
    withExtendedLifetime(to) {}
  }

  @Test func `a program writes its standard output to the given descriptor, and has it once`() throws {
    let (reader, writer) = try FileDescriptor.pipe()
    let from = FileDescriptor(owning: reader)
    let to = FileDescriptor(owning: writer)
    let child = try ChildProcess(
      starting: "sh", ["-c", "ls /proc/self/fd | tr '\\n' ' '; echo end >&2"], output: to.rawValue, on: loop
    ) { [ends] end, _ in ends.add(end) }
    #expect(eventually { ends.all.count == 1 })
    // `ls` itself opens the folder, as the first free number.
    #expect(try from.read(count: 100).map { String(decoding: $0, as: UTF8.self) } == "0 1 2 3 ")
    #expect(child.lastLines == ["end"])
    withExtendedLifetime(to) {}
  }

  @Test func `a program starts with the default signal dispositions and without blocked signals`() throws {
    Process.ignoreSignalsOfWrites()
    let child = try start("cat", ["/proc/self/status", "/nestling-no-such-file"])
    #expect(eventually { ends.all == [.exited(status: 1)] })
    let copied = try shell("cat /proc/self/status >&2")
    #expect(eventually { ends.all.count == 2 })
    let signals = copied.lastLines.filter { $0.hasPrefix("SigBlk") || $0.hasPrefix("SigIgn") }
    #expect(signals == ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"])
    // Standard output is /dev/null.
    #expect(child.lastLines.count == 1)
  }

  @Test func `stop ends a program without waiting, by SIGKILL if it ignores SIGTERM`() throws {
    let polite = try start("sleep", ["1000"])
    polite.stop()
    #expect(eventually { ends.all == [.killed(signal: SIGTERM)] })
    let stubborn = try shell("trap '' TERM; echo ready >&2; while :; do sleep 1; done")
    #expect(eventually { stubborn.lastLines == ["ready"] })
    // The loop cannot take the program's end before `stop` has returned.
    let (blocked, gate) = (Semaphore(), Semaphore())
    let job = EventLoop.Job(on: loop)
    job.onRun {
      blocked.signal()
      gate.wait()
    }
    job.schedule()
    blocked.wait()
    let begin = Clock.monotonic()
    let stops = Notes<ChildProcess.End?>()
    let thread = try Thread(name: "stop test") {
      stubborn.stop(patience: 200_000_000)
      stops.add(stubborn.end)
    }
    #expect(eventually { stops.all == [nil] })
    gate.signal()
    thread.join()
    #expect(eventually { ends.all.count == 2 })
    #expect(ends.all.last == .killed(signal: SIGKILL))
    #expect(Clock.monotonic() - begin >= 200_000_000)
  }

  @Test func `a program without end of output does not hold up the loop, and little of its text is kept`() throws {
    let child = try shell("while :; do echo 0123456789abcdef; done >&2")
    #expect(eventually { !child.lastLines.isEmpty })
    for _ in 0..<20 { loop.perform {} }
    child.stop()
    #expect(eventually { ends.all == [.killed(signal: SIGTERM)] })
    #expect(child.lastLines.count <= 16384 / 17 + 1)
  }

  @Test func `a program ends with the thread that has started it`() throws {
    let starter = try EventLoop(name: "starter test")
    let child = try ChildProcess(starting: "sleep", ["1000"], by: starter, on: loop) { [ends] end, _ in ends.add(end) }
    #expect(runs(child.processID))
    starter.stop()
    #expect(eventually { ends.all == [.killed(signal: SIGKILL)] })
    #expect(!runs(child.processID))
  }

  @Test func `the loop keeps a program; without the loop and an owner it ends, and leaves no zombie`() throws {
    let other = try EventLoop(name: "child test")
    var child: ChildProcess? = try ChildProcess(starting: "sleep", ["1000"], on: other) { _, _ in }
    let process = try #require(child).processID
    child = nil
    for _ in 0..<3 { other.perform {} }
    #expect(runs(process))
    other.stop()
    #expect(eventually { kill(process, 0) < 0 && errno == ESRCH })
  }
}
