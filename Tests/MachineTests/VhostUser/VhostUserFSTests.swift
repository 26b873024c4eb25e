import Glibc
import Hardware
import Linux
import PCI
import TestSupport
import Testing

@testable import Machine

/// virtiofsd of Debian's package qemu-system-common. It confines itself to its folder, which only root may.
private final class FolderDaemon {
  static let program = "/usr/lib/qemu/virtiofsd"
  static var canRun: Bool { access(program, X_OK) == 0 && geteuid() == 0 }

  private let folder: String
  private var process = pid_t()
  var socket: String { folder + "/socket" }

  init() throws {
    var template = Array("/tmp/nestling-folder-XXXXXX".utf8CString)
    folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    let words = [
      Self.program, "--socket-path=\(socket)", "-o", "source=\(folder)", "-o", "sandbox=chroot", "-o", "log_level=err",
    ]
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
    defer { for argument in arguments { free(argument) } }
    try #require(posix_spawn(&process, words[0], nil, nil, &arguments, environ) == 0)
    // The daemon serves the first client and then ends, so the test must not probe the socket.
    try #require(eventually { access(socket, F_OK) == 0 })
    usleep(100_000)
  }

  deinit {
    kill(process, SIGKILL)
    var status: Int32 = 0
    waitpid(process, &status, 0)
    unlink(socket)
    unlink(socket + ".pid")
    rmdir(folder)
  }
}

/// A machine without a CPU with a folder of the host, which virtiofsd serves.
@Suite("a folder over vhost-user", .enabled(if: FolderDaemon.canRun), .timeLimit(.minutes(5)))
struct VhostUserFSTests {
  @Test func `the daemon answers FUSE_INIT on the request queue`() throws {
    let daemon = try FolderDaemon()
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    var chardev = SocketChardevOptions()
    chardev.id = try Identifier(text: "c0")
    chardev.path = daemon.socket
    configuration.chardevs = [chardev]
    var options = VhostUserFSOptions()
    options.chardev = chardev.id
    options.tag = "myfs"
    options.function.address = RequesterID(bus: 0, device: 4, function: 0)
    configuration.devices = [options]
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    defer {
      machine.control.requestQuit(.monitorQuit)
      thread.join()
    }
    #expect(eventually { machine.control.status == .running })
    let driver = VirtioTestDriver(machine.board, RequesterID(bus: 0, device: 4, function: 0), queue: 1)
    #expect(driver.read(configuration: 0) == 0x105a_1af4)
    // The tag, and one request queue.
    #expect(driver.configuration(0) == 0x7366_796d && driver.configuration(4) == 0 && driver.configuration(36) == 1)
    driver.start()
    // struct fuse_in_header and fuse_init_in of <linux/fuse.h>: FUSE_INIT, version 7.31.
    var request = [UInt8](littleEndian: UInt32(56), UInt32(26), UInt64(1), UInt64(0), UInt64(0), UInt64(0))
    request.append(littleEndian: UInt32(7), UInt32(31), UInt32(0x20000), UInt32(0))
    driver.submit(request, answer: 80)
    #expect(eventually { driver.usedIndex == 1 })
    // struct fuse_out_header: length, no error, the same request; then the version.
    let answer = driver.answer(80)
    #expect(answer.load(UInt32.self, at: 0) == 80 && answer.load(UInt32.self, at: 4) == 0)
    #expect(answer.load(UInt64.self, at: 8) == 1 && answer.load(UInt32.self, at: 16) == 7)
  }
}
