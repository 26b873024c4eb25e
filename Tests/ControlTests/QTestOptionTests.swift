import Control
import Machine
import Testing

@Suite struct QTestOptionTests {
  /// What QEMU 10's libqtest passes, but for the monitor.
  @Test func libqtestsCommandLine() throws {
    let machine = try configuration(
      "-qtest", "unix:/tmp/qtest-1.sock", "-qtest-log", "/dev/null", "-display", "none", "-audio", "none",
      "-run-with", "exit-with-parent=on", "-M", "q35", "-device", "intel-iommu,x-scalable-mode=on,x-flts=on",
      "-accel", "qtest")
    #expect(machine.accelerator == .qtest)
    #expect(machine.boot == nil)
    #expect(machine.exitsWithParent)
    var options = QTestOptions(channel: .unixSocket(path: "/tmp/qtest-1.sock", server: false, wait: false))
    options.log = .file(path: "/dev/null")
    #expect(machine.qtest == options)
    // There is no person at the terminal.
    #expect(machine.serials == [.null])
  }

  private static let channels: [(String, QTestOptions.Channel)] = [
    ("stdio", .stdio),
    ("unix:/tmp/s", .unixSocket(path: "/tmp/s", server: false, wait: false)),
    ("unix:/tmp/s,server=on", .unixSocket(path: "/tmp/s", server: true, wait: true)),
    ("unix:/tmp/s,server,nowait", .unixSocket(path: "/tmp/s", server: true, wait: false)),
  ]

  @Test(arguments: channels)
  func channel(_ text: String, _ channel: QTestOptions.Channel) throws {
    let machine = try configuration("-accel", "qtest", "-qtest", text)
    #expect(machine.qtest == QTestOptions(channel: channel))
  }

  @Test func logs() throws {
    let words = ["-accel", "qtest", "-qtest", "stdio", "-qtest-log"]
    for (text, log) in [("none", .none), ("file", .file(path: "file"))] as [(String, QTestOptions.Log)] {
      guard case .run(let machine) = Control.parse(words + [text]) else {
        Issue.record("\(text)")
        continue
      }
      #expect(machine.qtest?.log == log)
    }
  }

  @Test func accelerators() throws {
    #expect(try configuration("-M", "q35,accel=qtest").accelerator == .qtest)
    #expect(try configuration("-M", "accel=qtest:kvm", "-accel", "qtest").accelerator == .qtest)
    #expect(try configuration("-kernel", "k").accelerator == .kvm(device: "/dev/kvm"))
    // A kernel may be there, and a client may drive a machine that has CPUs.
    #expect(try configuration("-accel", "qtest", "-kernel", "k").boot?.kernel == "k")
    let driven = try configuration("-kernel", "k", "-qtest", "unix:s")
    #expect(driven.accelerator == .kvm(device: "/dev/kvm") && driven.qtest != nil)
  }

  @Test(
    arguments: [
      (["-accel", "qtest", "-accel", "kvm"], "another option asks for 'qtest'"),
      (["-accel", "qtest", "-enable-kvm"], "another option asks for 'qtest'"),
      (["-M", "accel=kvm", "-accel", "qtest"], "another option asks for 'kvm'"),
      (["-accel", "qtest,device=/dev/kvm"], "only kvm has a device"),
      (["-accel", "tcg"], "accel must be kvm or qtest"),
      (["-qtest-log", "none", "-kernel", "k"], "only allowed with -qtest"),
      (["-qtest-log", "", "-qtest", "stdio"], "it needs a file's name"),
      (["-qtest", "tcp:1234"], "unknown qtest backend"),
      (["-qtest", "unix:"], "the path is missing"),
      (["-accel", "qtest", "-qtest", "stdio", "-serial", "stdio"], "standard input is the serial port's"),
      (["-qtest", "unix:s"], "there is nothing to boot"),
      (["-audio", "alsa"], "unknown audio driver"),
      (["-audio", "driver=pa"], "unknown audio driver"),
      (["-run-with", "chroot=/"], "chroot"),
    ])
  func refused(_ words: [String], _ text: String) throws {
    let line = try #require(failure(words))
    #expect(line.contains(text), "\(line)")
  }

  @Test func noSound() throws {
    for words in [["-audio", "none"], ["-audio", "driver=none"], ["-audiodev", "none,id=a0"]] {
      guard case .run = Control.parse(words + ["-kernel", "k"]) else {
        Issue.record("\(words)")
        continue
      }
    }
  }
}
