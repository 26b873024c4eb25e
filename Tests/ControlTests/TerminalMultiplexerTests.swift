import Control
import Machine
import Testing

@Suite struct TerminalMultiplexerTests {
  private func receive(_ inputs: [UInt8]...) -> (guest: [UInt8], actions: [InputAction]) {
    var multiplexer = TerminalMultiplexer()
    var guest: [UInt8] = []
    var actions: [InputAction] = []
    for input in inputs {
      var rest = input[...]
      while !rest.isEmpty {
        let (used, action) = multiplexer.receive(rest, guestBytes: &guest)
        rest = rest.dropFirst(used)
        if let action { actions.append(action) }
        if action == .exit { return (guest, actions) }
      }
    }
    return (guest, actions)
  }

  private let escape = TerminalMultiplexer.escape

  @Test("every byte except the escape byte reaches the guest")
  func everythingElseIsTheGuests() {
    let bytes = (UInt8(0)...255).filter { $0 != 1 }
    let (guest, actions) = receive(bytes)
    #expect(guest == bytes && actions.isEmpty)
  }

  @Test("two escape bytes send one to the guest")
  func twoEscapesSendOne() {
    let (guest, actions) = receive([0x61, escape, escape, 0x78])
    #expect(guest == [0x61, 0x01, 0x78] && actions.isEmpty)
  }

  @Test("an escape and x end Nestling", arguments: [UInt8(ascii: "x"), UInt8(ascii: "X")])
  func exitEndsIt(_ letter: UInt8) {
    let (guest, actions) = receive([0x61, escape, letter, 0x62])
    #expect(guest == [0x61] && actions == [.exit])
  }

  @Test("the escape and its letter may arrive in separate reads")
  func anEscapeMayComeAlone() {
    let (guest, actions) = receive([escape], [UInt8(ascii: "x")])
    #expect(guest.isEmpty && actions == [.exit])
  }

  @Test("Ctrl-A h shows the help")
  func helpIsShown() {
    let (guest, actions) = receive([escape, UInt8(ascii: "h"), 0x61])
    #expect(guest == [0x61])
    guard actions.count == 1, case .show(let help) = actions[0] else {
      Issue.record("\(actions)")
      return
    }
    #expect(help.contains("C-a x    exit emulator"))
  }

  /// The rest of the input is not consumed, because it belongs to the next focus.
  @Test("an escape and c switch the focus before the next byte is consumed")
  func theFocusIsSwitchedInPlace() {
    var multiplexer = TerminalMultiplexer()
    var guest: [UInt8] = []
    let (used, action) = multiplexer.receive([0x61, escape, UInt8(ascii: "c"), 0x62], guestBytes: &guest)
    #expect(used == 3 && action == .switchFocus && guest == [0x61])
  }

  @Test("an escape with an unknown letter is dropped")
  func aLetterWithoutMeaningIsDropped() {
    let (guest, actions) = receive([escape, UInt8(ascii: "q"), UInt8(ascii: "x")])
    #expect(guest == [UInt8(ascii: "x")] && actions.isEmpty)
  }
}
