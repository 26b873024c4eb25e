import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// Starts scripts in place of passt, which behave as only some versions of it do.
@Suite(.timeLimit(.minutes(2))) struct ScriptedPasstTests {
  private let path = "/tmp/nestling-passt-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private let loop: EventLoop

  init() throws { loop = try EventLoop(name: "passt test") }

  /// Starts a netdev whose program is this script, and waits until it is ready.
  private func start(_ script: String) throws -> any NetdevBackend {
    // Another process writes the file: a program that another test starts at the same time could inherit this process's
    // descriptor, and execve(2) refuses a file that is open for writing.
    let ends = Notes<ChildProcess.End>()
    let words = ["-c", "printf %s \"$1\" >\"$0\" && chmod 700 \"$0\"", path, "#!/bin/sh\n\(script)\n"]
    let writer = try ChildProcess(starting: "sh", words, on: loop) { end, _ in ends.add(end) }
    defer { unlink(path) }
    try #require(eventually { ends.all == [.exited(status: 0)] })
    withExtendedLifetime(writer) {}
    var options = PasstNetdevOptions()
    options.id = try Identifier(text: "n0")
    options.path = path
    let backend = try options.open(
      on: NetdevHost(loop: loop, memory: try GuestMemory(size: 1 << 20, lowLimit: 1 << 20), chardevs: nil) { _ in })
    try backend.awaitStart(patience: 20_000_000_000)
    return backend
  }

  private func process(_ backend: any NetdevBackend) throws -> Int32 {
    guard case .process(let number) = backend.status else { throw SystemError("passt", code: ESRCH) }
    return number
  }

  /// Writes the process id as passt does: to the file that follows `--pid`.
  private let getReady = "while [ \"$1\" != --pid ]; do shift; done; echo $$ >\"$2\" || exit 1"

  @Test func `a passt that closes all descriptors but its socket and the standard ones becomes ready`() throws {
    let backend = try start("exec 4>&- 5>&- 6>&- 7>&-; \(getReady); exec sleep 1000")
    #expect(kill(try process(backend), 0) == 0)
    #expect(backend.isLinkUp)
    backend.close()
    loop.stop()
  }

  @Test func `a passt that ignores SIGTERM ends with the loop, even if a device still has its netdev`() throws {
    let backend = try start("trap '' TERM; \(getReady); exec sleep 1000")
    let process = try process(backend)
    backend.close()
    loop.stop()
    #expect(eventually { kill(process, 0) < 0 && errno == ESRCH })
    withExtendedLifetime(backend) {}
  }
}
