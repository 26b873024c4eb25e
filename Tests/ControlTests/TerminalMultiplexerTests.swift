import Control
import Testing

@Suite struct TerminalMultiplexerTests {
  private func receive(_ inputs: [UInt8]...) -> (guest: [UInt8], actions: [TerminalMultiplexer.Action]) {
    var multiplexer = TerminalMultiplexer()
    var guest: [UInt8] = []
    var actions: [TerminalMultiplexer.Action] = []
    for input in inputs { actions += multiplexer.receive(input, guestBytes: &guest) }
    return (guest, actions)
  }

  private let escape = TerminalMultiplexer.escape

  @Test func everythingElseIsTheGuests() {
    let bytes = (UInt8(0)...255).filter { $0 != 1 }
    let (guest, actions) = receive(bytes)
    #expect(guest == bytes && actions.isEmpty)
  }

  @Test func twoEscapesSendOne() {
    let (guest, actions) = receive([0x61, escape, escape, 0x78])
    #expect(guest == [0x61, 0x01, 0x78] && actions.isEmpty)
  }

  @Test(arguments: [UInt8(ascii: "x"), UInt8(ascii: "X")])
  func exitEndsIt(_ letter: UInt8) {
    let (guest, actions) = receive([0x61, escape, letter, 0x62])
    #expect(guest == [0x61] && actions == [.exit])
  }

  @Test func anEscapeMayComeAlone() {
    let (guest, actions) = receive([escape], [UInt8(ascii: "x")])
    #expect(guest.isEmpty && actions == [.exit])
  }

  @Test func helpAndTheMissingMonitorAreShown() {
    let (guest, actions) = receive([escape, UInt8(ascii: "h"), 0x61, escape, UInt8(ascii: "c")])
    #expect(guest == [0x61])
    guard actions.count == 2, case .show(let help) = actions[0], case .show(let monitor) = actions[1] else {
      Issue.record("\(actions)")
      return
    }
    #expect(help.contains("C-a x    exit emulator") && monitor.contains("no monitor yet"))
  }

  @Test func aLetterWithoutMeaningIsDropped() {
    let (guest, actions) = receive([escape, UInt8(ascii: "q"), UInt8(ascii: "x")])
    #expect(guest == [UInt8(ascii: "x")] && actions.isEmpty)
  }
}
