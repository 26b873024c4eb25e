import Hardware
import TestSupport
import Testing

@testable import Machine

/// Compares the answers with those of QEMU's system/qtest.c.
@Suite struct QTestSessionTests {
  @Test("numbers of each width are read from and written to memory")
  func numbersInMemory() throws {
    let client = try QTestBoard()
    #expect(client.send("writeq 0x1000 0x1122334455667788") == "OK")
    for (command, answer) in [
      ("readb 0x1001", "OK 0x0000000000000077"), ("readw 0x1001", "OK 0x0000000000006677"),
      ("readl 4096", "OK 0x0000000055667788"), ("readq 010000", "OK 0x1122334455667788"),
      ("readq 0x1004", "OK 0x0000000011223344"),
    ] { #expect(client.send(command) == answer, "\(command)") }
    // Bits beyond the width are dropped.
    for command in ["writeb 0x1000 0x1ff", "writew 0x1002 0xabcdef", "writel 0x1004 -2"] { client.order(command) }
    #expect(client.send("readq 0x1000") == "OK 0xfffffffecdef77ff")
  }

  @Test("blocks of memory are read and written in hexadecimal and in base64")
  func blocksOfMemory() throws {
    let client = try QTestBoard()
    client.order("write 0x2000 6 0x0123456789AB")
    #expect(client.send("read 0x2000 6") == "OK 0x0123456789ab")
    #expect(client.send("b64read 0x2000 6") == "OK ASNFZ4mr")
    #expect(client.send("b64read 0x2000 5") == "OK ASNFZ4k=")
    #expect(client.send("b64read 0x2000 4") == "OK ASNFZw==")
    #expect(client.send("b64read 0x2000 0") == "OK ")
    // Too little data is filled up with zeroes, too much is cut off.
    client.order("write 0x2000 4 0xff")
    #expect(client.send("read 0x2000 6") == "OK 0xff00000089ab")
    client.order("write 0x2000 1 0x778899")
    #expect(client.send("read 0x2000 2") == "OK 0x7700")
    client.order("b64write 0x2000 3 AQIDBAUG")
    #expect(client.send("read 0x2000 6") == "OK 0x0102030089ab")
    client.order("b64write 0x2000 6 AQI=")
    #expect(client.send("read 0x2000 6") == "OK 0x0102030089ab")
    client.order("memset 0x1ffe 4 0x1ee")
    #expect(client.send("read 0x1ffd 6") == "OK 0x00eeeeeeee03")
    client.order("memset 0x2000 0 1")
    #expect(client.send("readb 0x2000") == "OK 0x00000000000000ee")
  }

  /// Beyond RAM a block continues over the bus, and an address without a device reads as ones.
  @Test("a block continues beyond RAM and wraps at the end of the address space")
  func theEndOfMemory() throws {
    let client = try QTestBoard(unit: .init())
    let end = QTestBoard.memorySize
    client.order("memset \(end - 2) 4 0x5a")
    #expect(client.send("read \(end - 4) 8") == "OK 0x00005a5affffffff")
    // The unit's version register and the word above it; unaligned accesses go byte by byte.
    #expect(client.send("read 0xfed90000 8") == "OK 0x1000000000000000")
    #expect(client.send("read 0xfed8ffff 3") == "OK 0xff1000")
    // The address space wraps.
    #expect(client.send("read 0xfffffffffffffffe 4") == "OK 0xffff0000")
  }

  @Test("ports are read and written, and a port without a device reads as ones")
  func ports() throws {
    let client = try QTestBoard()
    client.order("outl 0xcf8 0x80000000")
    #expect(client.send("inl 0xcfc") == "OK 0x29c08086")
    #expect(client.send("inw 0xcfc") == "OK 0x8086")
    #expect(client.send("inb 0xcfc") == "OK 0x0086")
    #expect(client.send("inl 0x1234") == "OK 0xffffffff")
    #expect(client.send("inb 0x1234") == "OK 0x00ff")
    client.order("outb 0x1234 0")
    client.order("outw 0x1234 0x12345")
  }

  @Test("only commands move the clock, and the clock fires the timers that it passes")
  func time() throws {
    let client = try QTestBoard()
    #expect(client.send("clock_step").hasPrefix("FAIL cannot advance clock to the next deadline"))
    #expect(client.send("clock_step 100") == "OK 100")
    #expect(client.send("clock_step 0") == "FAIL could not advance time")
    #expect(client.send("clock_step -5") == "FAIL could not advance time")
    #expect(client.send("clock_set 1000") == "OK 1000")
    #expect(client.send("clock_set 1000") == "OK 1000")
    #expect(client.send("clock_set 999") == "FAIL 1000")
    let timer = client.clock.makeTimer()
    let clock = client.clock
    let seen = Times()
    timer.start(afterMilliseconds: 1) {
      seen.add(clock.now)
      timer.start(afterMilliseconds: 2) { seen.add(clock.now) }
    }
    #expect(client.send("clock_step") == "OK 1001000")
    #expect(seen.all == [1_001_000])
    #expect(client.send("clock_step 5000000") == "OK 6001000")
    #expect(seen.all == [1_001_000, 3_001_000])
    #expect(client.send("clock_step").hasPrefix("FAIL"))
    // The clock's highest value.
    #expect(client.send("clock_set 0x7fffffffffffffff") == "OK 9223372036854775807")
    #expect(client.send("clock_step 0x7fffffffffffffff") == "FAIL could not advance time")
    #expect(client.send("clock_set 0x8000000000000000") == "ERR invalid number '0x8000000000000000'")
  }

  /// PM_TMR counts the virtual clock at 3.579545 MHz.
  @Test("the power management timer follows the virtual clock")
  func thePowerManagementTimerFollows() throws {
    let client = try QTestBoard()
    let start = try client.ask("inl 0x608")
    #expect(try client.ask("inl 0x608") == start)
    #expect(client.send("clock_step 1000000000") == "OK 1000000000")
    #expect(try client.ask("inl 0x608") == (start + 3_579_545) & 0xff_ffff)
  }

  @Test("pins of the IOAPIC can be set, and changes of intercepted pins are reported")
  func interrupts() throws {
    let client = try QTestBoard()
    // The pins are not intercepted yet.
    client.order("set_irq_in ioapic unnamed-gpio-in 5 1")
    client.order("irq_intercept_in ioapic")
    client.order("irq_intercept_in /machine/q35/ioapic")
    #expect(client.send("set_irq_in ioapic unnamed-gpio-in 11 1") == "IRQ raise 11\nOK")
    #expect(client.send("set_irq_in ioapic unnamed-gpio-in 11 1") == "OK")
    #expect(client.send("set_irq_in ioapic unnamed-gpio-in 11 0") == "IRQ lower 11\nOK")
    // Its rise was not reported, so its fall is not reported either.
    #expect(client.send("set_irq_in ioapic unnamed-gpio-in 5 0") == "OK")
    #expect(client.send("irq_intercept_in pic") == "FAIL Unknown device")
    #expect(client.send("irq_intercept_in ioapic name").hasPrefix("FAIL Interception of named in-GPIOs"))
    #expect(client.send("irq_intercept_out ioapic") == "FAIL No intercepts installed")
    #expect(client.send("set_irq_in pic unnamed-gpio-in 1 1") == "FAIL Unknown device")
    for pin in ["24", "-1", "9223372036854775807"] {
      #expect(client.send("set_irq_in ioapic unnamed-gpio-in \(pin) 1") == "FAIL Unknown pin")
    }
    #expect(client.send("set_irq_in ioapic other 1 1") == "FAIL Unknown pin")
  }

  /// An intercepted pin still reaches the APIC, with the message of its redirection entry.
  @Test("intercepted interrupts still reach the local APICs")
  func interceptedInterruptsPass() throws {
    let client = try QTestBoard()
    client.order("irq_intercept_in ioapic")
    // Entry 6: vector 0x31, edge, unmasked.
    for (register, value) in [(0x1c, 0x31), (0x1d, 0)] {
      client.store32(UInt32(register), at: 0xfec0_0000)
      client.store32(UInt32(value), at: 0xfec0_0010)
    }
    #expect(client.interrupts.sent.isEmpty)
    #expect(client.send("set_irq_in ioapic unnamed-gpio-in 6 1") == "IRQ raise 6\nOK")
    #expect(client.interrupts.sent == [InterruptMessage(address: 0xfee0_0000, data: 0x31)])
  }

  @Test("endianness is answered, module_load and rtas fail, and empty lines and extra spaces are ignored")
  func whatElseThereIs() throws {
    let client = try QTestBoard()
    #expect(client.send("endianness") == "OK little")
    #expect(client.send("module_load hw- qxl") == "FAIL")
    #expect(client.send("rtas foo 1 2 3 4") == "FAIL Unknown command 'rtas'")
    #expect(client.send("") == "")
    #expect(client.session.execute([]).isEmpty && client.session.execute(Array("   ".utf8)[...]).isEmpty)
    #expect(client.send("  inl   0x1234  ") == "OK 0xffffffff")
  }

  @Test("without a stepped clock the clock commands are unknown")
  func withoutASteppedClockThereIsNoStepping() throws {
    let client = try QTestBoard()
    let session = QTestSession(board: client.board, clock: nil)
    for command in ["clock_step", "clock_set"] {
      let answer = session.execute(Array("\(command) 5".utf8)[...])
      #expect(String(decoding: answer, as: UTF8.self) == "FAIL Unknown command '\(command)'\n")
    }
  }

  // MARK: Errors

  @Test(
    "each malformed command gets its error",
    arguments: [
      ("inb", "ERR missing argument"), ("outl 1", "ERR missing argument"), ("readq", "ERR missing argument"),
      ("write 0 1", "ERR missing argument"), ("memset 0 1", "ERR missing argument"),
      ("irq_intercept_in", "ERR missing argument"), ("module_load x", "ERR missing argument"),
      ("set_irq_in ioapic unnamed-gpio-in 1", "ERR missing argument"),
      ("inb 0x10000", "ERR invalid port 0x10000"), ("outb -1 0", "ERR invalid port 0xffffffffffffffff"),
      ("readb 12x", "ERR invalid number '12x'"), ("readb 0x", "ERR invalid number '0x'"),
      ("readb 08", "ERR invalid number '08'"), ("readb -", "ERR invalid number '-'"),
      ("readb 0x10000000000000000", "ERR invalid number '0x10000000000000000'"),
      ("writeb 0 0xgg", "ERR invalid number '0xgg'"), ("clock_set x", "ERR invalid number 'x'"),
      ("read 0 0", "ERR invalid argument size"), ("read 0 0xffffffffffffffff", "ERR invalid argument size"),
      ("b64read 0 0x2000001", "ERR invalid argument size"), ("write 0 1 0x", "ERR invalid argument size"),
      ("write 0 0x2000001 0x00", "ERR invalid argument size"), ("b64write 0 1 AA", "ERR invalid argument size"),
      ("memset 0 0x40000001 0", "ERR invalid argument size"), ("write 0 1 0x0g", "ERR invalid hexadecimal data"),
      ("\u{1b}[2J\u{7f}", "FAIL Unknown command '?[2J?'"),
    ])
  func answersToMistakes(_ line: String, _ answer: String) throws {
    #expect(try QTestBoard().send(line) == answer)
  }

  /// A line without words gets no answer.
  @Test("a line of any bytes is answered with OK, FAIL or ERR", .timeLimit(.minutes(5)))
  func anyBytes() throws {
    let client = try QTestBoard(unit: .init())
    let words = [
      "inb", "outl", "readq", "writel", "read", "write", "b64read", "b64write", "memset", "clock_step", "clock_set",
      "irq_intercept_in", "set_irq_in", "ioapic", "unnamed-gpio-in", "0", "1", "-1", "0xcf8", "0xfed90000", "4096",
      "0xffffffffffffffff", "0x8000000000000000", "0xfec00000", "4", "64", "0x00ff", "AAAA", "", "\u{0}", "é", "0x",
    ].map { Array($0.utf8) }
    let seed = UInt64.random(in: 0 ... .max)
    var generator = SeededGenerator(seed: seed)
    for _ in 0..<3000 {
      var line: [UInt8] = []
      for _ in 0..<Int.random(in: 1...5, using: &generator) {
        line += words.randomElement(using: &generator) ?? []
        if Int.random(in: 0..<8, using: &generator) == 0 { line.append(UInt8.random(in: 0...255, using: &generator)) }
        line.append(UInt8(ascii: " "))
      }
      line.removeAll { $0 == UInt8(ascii: "\n") }
      let answer = client.send(line)
      let last = answer.split(separator: "\n").last ?? ""
      #expect(
        answer.isEmpty || ["OK", "FAIL", "ERR"].contains(String(last.prefix { $0 != " " })),
        "seed \(seed): \(String(decoding: line, as: UTF8.self)) -> \(answer)")
    }
  }
}

@Suite struct QTestLinesTests {
  private func lines(_ lines: inout QTestLines) -> [String] {
    var all: [String] = []
    while let piece = lines.next() {
      switch piece {
      case .line(let line): all.append(String(decoding: line, as: UTF8.self))
      case .tooLong: all.append("too long")
      }
    }
    return all
  }

  @Test("lines are split correctly, however many bytes arrive at a time")
  func howeverTheBytesCome() {
    let text = Array("inb 1\n\noutb 2 3\nrest".utf8)
    for step in 1...text.count {
      var cutter = QTestLines(limit: 100)
      var all: [String] = []
      for start in stride(from: 0, to: text.count, by: step) {
        cutter.append(Array(text[start..<min(text.count, start + step)]))
        all += lines(&cutter)
      }
      #expect(all == ["inb 1", "", "outb 2 3"])
    }
  }

  @Test("a line beyond the limit is skipped")
  func aLineBeyondTheLimitIsPassedOver() {
    for step in [1, 3, 7, 1000] {
      var cutter = QTestLines(limit: 8)
      let text = Array(("12345678\n123456789\n" + String(repeating: "x", count: 100) + "\nend\n").utf8)
      var all: [String] = []
      for start in stride(from: 0, to: text.count, by: step) {
        cutter.append(Array(text[start..<min(text.count, start + step)]))
        all += lines(&cutter)
      }
      #expect(all == ["12345678", "too long", "too long", "end"], "in steps of \(step)")
    }
  }
}
