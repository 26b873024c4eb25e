import CLinux
import Glibc
import Synchronization

/// A program that this process has started, and ends.
///
/// A thread that lives as long as this process starts it, because the kernel kills a program when the thread that has
/// started it ends (PR_SET_PDEATHSIG, prctl(2)). The start waits for execve(2), and so for the file system; no event
/// loop of others waits for it. The kernel forgets the signal for a program that changes its user, as passt does when
/// root starts it: such a program must end by itself, when a socket is closed for example.
///
/// No call waits for the program after its start. The loop keeps this object until the program has ended.
///
/// Lock order: `state` is a leaf. `onEnd` is called without it.
public final class ChildProcess: Sendable {
  public enum End: Hashable, Sendable {
    case exited(status: Int32)
    case killed(signal: Int32)
  }

  /// The descriptors of a program that runs.
  private final class Program: Sendable {
    let number: Int32
    let file: FileDescriptor
    /// The reading end of the program's standard error.
    let messages: FileDescriptor

    init(_ number: Int32, _ file: consuming FileDescriptor, messages: consuming FileDescriptor) {
      self.number = number
      self.file = file
      self.messages = messages
    }
  }

  private final class Launch: Sendable {
    let outcome = Mutex<Result<Program, SystemError>?>(nil)
  }

  private struct State {
    var end: End?
    /// The last bytes of the program's standard error.
    var text: [UInt8] = []
    /// They hold this object, so its end removes them.
    var endWatch: EventLoop.Registration?
    var outputWatch: EventLoop.Registration?
  }

  /// The kept bytes of standard error.
  private static let textLimit = 16384
  private static let readSize = 4096

  /// Its thread starts programs, and takes the end of those that no loop serves any more.
  private static let starter = Result { () throws(SystemError) in try EventLoop(name: "programs") }

  private let starter: EventLoop
  private let program: Program
  private let killTimer: EventLoop.Timer
  private let onEnd: @Sendable (End, [String]) -> Void
  private let state = Mutex(State())

  /// Starts a program: with /dev/null as standard input, and the default signal dispositions.
  /// - Parameters:
  ///   - name: the name of a program in PATH, or a path.
  ///   - descriptors: the program gets them as 3, 4 and so on, and no others. At most `passedLimit`.
  ///   - output: the program's standard output; nil for /dev/null.
  ///   - onEnd: called once on the loop's thread, after the program has ended, with `lastLines`.
  /// - Throws: the error of execve(2), such as ENOENT if there is no such program.
  public convenience init(
    starting name: String, _ arguments: [String], passing descriptors: [Int32] = [], output: Int32? = nil,
    on loop: EventLoop, onEnd: @escaping @Sendable (End, [String]) -> Void
  ) throws(SystemError) {
    let starter = try ChildProcess.starter.get()
    try self.init(
      starting: name, arguments, passing: descriptors, output: output, by: starter, on: loop, onEnd: onEnd)
  }

  /// - Parameter starter: its thread starts the program.
  init(
    starting name: String, _ arguments: [String], passing descriptors: [Int32] = [], output: Int32? = nil,
    by starter: EventLoop, on loop: EventLoop, onEnd: @escaping @Sendable (End, [String]) -> Void
  ) throws(SystemError) {
    let launch = Launch()
    starter.perform {
      let outcome = Result { () throws(SystemError) in
        try ChildProcess.start([name] + arguments, descriptors, output: output)
      }
      launch.outcome.withLock { $0 = outcome }
    }
    guard let outcome = launch.outcome.withLock({ $0 }) else { throw SystemError("vfork", name, code: ECANCELED) }
    self.starter = starter
    program = try outcome.get()
    killTimer = EventLoop.Timer(on: loop)
    self.onEnd = onEnd
    let endWatch = try loop.register(program.file.rawValue, []) { _ in self.takeEnd() }
    let outputWatch = try loop.register(program.messages.rawValue, []) { _ in self.readOutput() }
    state.withLock { state in
      state.endWatch = endWatch
      state.outputWatch = outputWatch
    }
    outputWatch.setInterest(.readable)
    endWatch.setInterest(.readable)
  }

  /// The program still runs if the loop has ended before it, or was unable to serve it.
  deinit {
    guard state.withLock({ $0.end == nil }) else { return }
    signal(SIGKILL)
    let reaper = EventLoop.Job(on: starter)
    reaper.onRun { [program] in
      guard Poll.readable([program.file.rawValue], milliseconds: 1000) == [true] else { return }
      var code: Int32 = 0
      // SAFETY: the number outlives the call.
      _ = unsafe nestling_program_end(program.number, &code)
    }
    reaper.schedule()
  }

  /// The most descriptors that a program gets.
  public static let passedLimit = Int(NESTLING_STARTED_LIMIT)

  private static func start(
    _ words: [String], _ descriptors: [Int32], output: Int32?
  ) throws(SystemError) -> Program {
    let (reader, writer) = try FileDescriptor.pipe()
    let messages = FileDescriptor(owning: reader)
    let errors = FileDescriptor(owning: writer)
    // SAFETY: the copies live until they are freed below, after the call; a nil ends the list.
    var arguments: [UnsafeMutablePointer<CChar>?] = unsafe words.map { unsafe strdup($0) } + [nil]
    defer { unsafe arguments.forEach { unsafe free($0) } }
    var file: Int32 = -1
    let answer = unsafe nestling_start_program(
      &arguments, descriptors, UInt32(descriptors.count), output ?? -1, errors.rawValue, &file)
    withExtendedLifetime(errors) {}
    let number = try checked(answer, "execve", words[0])
    return Program(number, FileDescriptor(owning: file), messages: messages)
  }

  /// The program's id.
  public var processID: Int32 { program.number }

  /// The way in which the program ended; nil while it runs.
  public var end: End? { state.withLock { $0.end } }

  /// The last lines of standard error that are not empty, from at most 16 KiB of text.
  public var lastLines: [String] {
    let text = state.withLock { $0.text }
    return text.split(separator: 0x0a).map { String(decoding: $0, as: UTF8.self) }
  }

  /// Ends the program: SIGTERM, and SIGKILL if it still runs after a time. Does not wait.
  /// - Parameter patience: the time, in nanoseconds.
  public func stop(patience: UInt64 = 2_000_000_000) {
    guard end == nil else { return }
    signal(SIGTERM)
    killTimer.start(at: Clock.monotonic() &+ patience) { [weak self] in self?.signal(SIGKILL) }
  }

  private func signal(_ number: Int32) { _ = nestling_signal_program(program.file.rawValue, number) }

  // MARK: The loop's thread

  private func takeEnd() {
    var code: Int32 = 0
    // SAFETY: the number outlives the call.
    let kind = unsafe nestling_program_end(program.number, &code)
    guard kind != 0 else { return }
    killTimer.stop()
    // What the program wrote before its end. Another process may write to the same pipe without end.
    var parts = 0
    while parts < 16, readOutput() { parts += 1 }
    let end: End = kind == 1 ? .exited(status: code) : .killed(signal: kind == 2 ? code : SIGKILL)
    let watches = state.withLock { state in
      state.end = end
      defer { (state.endWatch, state.outputWatch) = (nil, nil) }
      return [state.endWatch, state.outputWatch]
    }
    for watch in watches { watch?.cancel() }
    onEnd(end, lastLines)
  }

  /// Reads a part of the program's standard error.
  /// - Returns: false if there is no more now.
  @discardableResult
  private func readOutput() -> Bool {
    let bytes: [UInt8]?
    do {
      bytes = try program.messages.read(count: Self.readSize)
    } catch {
      bytes = []
    }
    guard let bytes else { return false }
    if bytes.isEmpty {
      // The pipe's end; the loop would report it again and again.
      state.withLock { state in
        defer { state.outputWatch = nil }
        return state.outputWatch
      }?.cancel()
      return false
    }
    state.withLock { state in
      state.text += bytes
      if state.text.count > Self.textLimit { state.text.removeFirst(state.text.count - Self.textLimit) }
    }
    return true
  }
}
