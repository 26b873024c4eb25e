import Testing

@testable import Control

@Suite struct HumanSessionTests {
  private func answers(_ pieces: String..., echoes: Bool = false) -> (String, [String]) {
    var session = HumanSession(echoes: echoes)
    let machine = RecordingMachine()
    var text = ""
    for piece in pieces {
      session.receive(piece.utf8, on: machine) { output in
        switch output {
        case .send(let bytes): text += String(decoding: bytes, as: UTF8.self)
        case .negotiated: Issue.record("nothing is negotiated here")
        case .perform(let action): action()
        }
        return true
      }
    }
    return (text, machine.requests)
  }

  @Test("the greeting ends in QEMU's prompt")
  func theGreetingEndsInQEMUsPrompt() {
    let text = String(decoding: HumanSession(echoes: false).greeting, as: UTF8.self)
    #expect(text == "Nestling 0.1.0 monitor - type 'help' for more information\r\n(qemu) ")
  }

  @Test("each complete line is answered, and half a line is not")
  func aLineIsAnswered() {
    #expect(answers("info sta", "tus\n").0 == "VM status: running\r\n(qemu) ")
    #expect(answers("info status\r\ninfo kvm\r").0 == "VM status: running\r\n(qemu) kvm support: enabled\r\n(qemu) ")
    #expect(answers("\n").0 == "(qemu) ")
    #expect(answers("q\n").1 == ["quit"])
    #expect(answers("half a line").0 == "")
  }

  @Test("typed characters are echoed and can be deleted")
  func whatIsTypedIsShownAndCanBeTakenBack() {
    let (text, requests) = answers("qx\u{7f}\r", echoes: true)
    #expect(text == "qx\u{8} \u{8}\r\n(qemu) " && requests == ["quit"])
    #expect(answers("äö\u{7f}\u{7f}q\n").1 == ["quit"])
    #expect(answers("junk\u{15}q\n").1 == ["quit"])
    #expect(answers("\u{7f}\u{7f}q\n").1 == ["quit"])
  }

  /// The session returns the number of bytes that it used. The caller passes the other bytes again later.
  @Test("while a client is slow to read answers, its further lines wait")
  func furtherLinesWaitForAReaderWhoIsBehind() {
    var session = HumanSession(echoes: false)
    let machine = RecordingMachine()
    let bytes = Array("info kvm\nq\nq\n".utf8)
    var answers = 0
    func receive(_ bytes: some Sequence<UInt8>) -> Int {
      session.receive(bytes, on: machine) { output in
        switch output {
        case .send: answers += 1
        case .perform(let action): action()
        case .negotiated: break
        }
        return false
      }
    }
    #expect(receive(bytes) == 9 && answers == 1 && machine.requests == [])
    #expect(receive(bytes[9...]) == 2 && answers == 2 && machine.requests == ["quit"])
  }

  @Test("a line beyond the limit is refused")
  func aLineHasALimit() {
    let (text, _) = answers(String(repeating: "x", count: 100_000) + "\ninfo kvm\n")
    #expect(text.hasPrefix("a line must be at most 4096 bytes long\r\n(qemu) ") && text.contains("kvm support"))
  }
}
