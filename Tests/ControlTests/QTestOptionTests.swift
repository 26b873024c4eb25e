import Control
import Machine
import Testing

@Suite struct QTestOptionTests {
  /// The options that libqtest of QEMU 10 passes.
  @Test("the command line of libqtest is accepted")
  func libqtestsCommandLine() throws {
    let machine = try configuration(
      "-qtest", "unix:/tmp/qtest-1.sock", "-qtest-log", "/dev/null",
      "-chardev", "socket,path=/tmp/qtest-1.qmp,id=char0", "-mon", "chardev=char0,mode=control", "-display", "none",
      "-audio", "none",
      "-run-with", "exit-with-parent=on", "-M", "q35", "-device", "intel-iommu,x-scalable-mode=on,x-flts=on",
      "-accel", "qtest")
    #expect(machine.accelerator == .qtest)
    #expect(machine.boot == nil)
    #expect(machine.exitsWithParent)
    #expect(machine.qtest?.log == .file(path: "/dev/null"))
    let socket = try #require(device(machine) as? SocketChardevOptions)
    #expect(socket.path == "/tmp/qtest-1.sock" && !socket.server)
    // The default serial port does not take the terminal.
    #expect(machine.serials == [.chardev(try Identifier(text: "serial0"))])
    #expect(machine.chardevs.last is NullChardevOptions)
    #expect(machine.monitors.count == 1)
  }

  /// Returns the chardev of the client.
  private func device(_ machine: MachineConfiguration) -> (any ChardevOptions)? {
    machine.chardevs.first { $0.id == machine.qtest?.device }
  }

  @Test("-qtest accepts each type of backend")
  func backends() throws {
    #expect(device(try configuration("-accel", "qtest", "-qtest", "stdio")) is StdioChardevOptions)
    let server = try configuration("-accel", "qtest", "-qtest", "unix:/tmp/s,server=on,wait=off")
    #expect((device(server) as? SocketChardevOptions)?.server == true)
    let named = try configuration("-accel", "qtest", "-chardev", "socket,id=a,path=s", "-qtest", "chardev:a")
    #expect((device(named) as? SocketChardevOptions)?.path == "s")
  }

  @Test("-qtest-log takes a file name, or the word none")
  func logs() throws {
    let words = ["-accel", "qtest", "-qtest", "stdio", "-qtest-log"]
    for (text, log) in [("none", .none), ("file", .file(path: "file"))] as [(String, QTestOptions.Log)] {
      guard case .run(let machine) = Control.parse(words + [text]) else {
        Issue.record("\(text)")
        continue
      }
      #expect(machine.qtest?.log == log)
    }
  }

  @Test("-accel qtest selects the accelerator, and -qtest also works with KVM")
  func accelerators() throws {
    #expect(try configuration("-M", "q35,accel=qtest").accelerator == .qtest)
    #expect(try configuration("-M", "accel=qtest:kvm", "-accel", "qtest").accelerator == .qtest)
    #expect(try configuration("-kernel", "k").accelerator == .kvm(device: "/dev/kvm"))
    // A kernel is allowed, and a client may drive a machine that has CPUs.
    #expect(try configuration("-accel", "qtest", "-kernel", "k").boot?.kernel == "k")
    let driven = try configuration("-kernel", "k", "-qtest", "unix:s")
    #expect(driven.accelerator == .kvm(device: "/dev/kvm") && driven.qtest != nil)
  }

  @Test(
    "a contradictory or unknown option is refused with the reason",
    arguments: [
      (["-accel", "qtest", "-accel", "kvm"], "another option selects 'qtest'"),
      (["-accel", "qtest", "-enable-kvm"], "another option selects 'qtest'"),
      (["-M", "accel=kvm", "-accel", "qtest"], "another option selects 'kvm'"),
      (["-accel", "qtest,device=/dev/kvm"], "only -accel kvm takes device="),
      (["-accel", "tcg"], "accel must be kvm or qtest"),
      (["-qtest-log", "none", "-kernel", "k"], "only allowed with -qtest"),
      (["-qtest-log", "", "-qtest", "stdio"], "the file name is missing"),
      (["-qtest", "none"], "none"),
      (["-qtest", "pty"], "pty"),
      (["-accel", "qtest", "-qtest", "chardev:a"], "-qtest chardev:a"),
      (["-accel", "qtest", "-chardev", "null,id=a", "-serial", "chardev:a", "-qtest", "chardev:a"], "in use"),
      (["-accel", "qtest", "-qtest", "stdio", "-serial", "stdio"], "-serial stdio"),
      (["-qtest", "unix:s"], "there is nothing to boot"),
      (["-audio", "alsa"], "unknown audio driver"),
      (["-audio", "driver=pa"], "unknown audio driver"),
      (["-run-with", "chroot=/"], "chroot"),
    ])
  func refused(_ words: [String], _ text: String) throws {
    let line = try #require(failure(words))
    #expect(line.contains(text), "\(line)")
  }

  @Test("audio options that ask for no sound are accepted")
  func noSound() throws {
    for words in [["-audio", "none"], ["-audio", "driver=none"], ["-audiodev", "none,id=a0"]] {
      guard case .run = Control.parse(words + ["-kernel", "k"]) else {
        Issue.record("\(words)")
        continue
      }
    }
  }
}
