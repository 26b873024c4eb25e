import Control
import Machine
import Testing

/// Parses random command lines: each has an answer, and an error is one line.
@Suite struct HostileCommandLineTests {
  /// An xorshift64* generator: its seed reproduces a failure.
  struct Random: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
      state ^= state >> 12
      state ^= state << 25
      state ^= state >> 27
      return state &* 0x2545_f491_4f6c_dd1d
    }
  }

  private static let options = [
    "-machine", "-M", "-accel", "-cpu", "-smp", "-m", "-name", "-kernel", "-initrd", "-append", "-device", "-object",
    "-drive", "-blockdev", "-serial", "-action", "-d", "-D", "-net", "-nic", "-display", "--device", "-x", "", "-",
    "--",
  ]
  private static let pieces = [
    "intel-iommu", "virtio-blk-pci", "virtio-rng-pci", "isa-debug-exit", "memory-backend-memfd", "rng-random", "q35",
    "kvm", "host", "x-flts", "fsts", "x-scalable-mode", "aw-bits", "drive", "id", "addr", "size", "cpus", "sockets",
    "cores", "threads", "maxcpus", "file", "if", "none", "virtio", "node-name", "filename", "driver", "raw", "unix:",
    "file:", "server", "nowait", "memory-backend", "hugetlbsize", "hugetlb", "num-queues", "iobase", "iosize",
    "user", "mac", "model", "=", "=", "=", ",", ",", ",", ",,", "on", "off", "auto", "0", "1", "4096", "65535",
    "4294967296", "18446744073709551615", "18446744073709551616", "-1", "0x", "0xffffffffffffffff", "1.5G", "16E",
    "15.9E", "1f", "1f.7", "é", "\u{0}", "\n", "\u{202e}", "👩‍👩‍👧‍👦", "help", "?", "no", "nono", " ",
  ]

  @Test(
    "every random command line gives run, print, or an error of one line",
    arguments: [1, 2, 3, 0xdead_beef] as [UInt64])
  func anyWordsHaveAnAnswer(_ seed: UInt64) throws {
    var random = Random(state: seed)
    var answers: Set<String> = []
    for _ in 0..<4000 {
      var words: [String] = Bool.random(using: &random) ? ["-kernel", "k"] : []
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        words.append(Self.options.randomElement(using: &random) ?? "")
        var argument = ""
        for _ in 0..<Int.random(in: 0...9, using: &random) {
          argument += Self.pieces.randomElement(using: &random) ?? ""
        }
        words.append(argument)
      }
      switch Control.parse(words) {
      case .run(let machine):
        answers.insert("run")
        // The RAM size and the CPU count of an accepted configuration are within the limits.
        #expect((16 << 20...1 << 45).contains(machine.memory.size))
        #expect((1...4096).contains(machine.processors.count))
      case .print: answers.insert("print")
      case .fail(let text):
        answers.insert("fail")
        #expect(text.hasPrefix("nestling: ") && text.hasSuffix("\n"))
        #expect(text.unicodeScalars.dropLast().allSatisfy { $0.value >= 0x20 && $0.value != 0x7f })
        #expect(text.utf8.count < 4096)
      }
    }
    #expect(answers == ["run", "print", "fail"])
  }

  @Test("a command line of two thousand drives is parsed")
  func manyDrivesAreParsed() {
    let words = ["-kernel", "k"] + (0..<2000).flatMap { ["-drive", "file=f\($0),if=none,readonly=on"] }
    guard case .run(let machine) = Control.parse(words) else {
      Issue.record("refused")
      return
    }
    #expect(machine.blockNodes.count == 2000)
    #expect(machine.blockNodes.last?.id == "none1999")
  }
}
