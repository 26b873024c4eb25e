import JSON
import Testing

@Suite struct JSONStreamTests {
  private func items(_ pieces: [[UInt8]], sizeLimit: Int = 1 << 20) -> [JSONStream.Item] {
    var stream = JSONStream(sizeLimit: sizeLimit)
    var items: [JSONStream.Item] = []
    for piece in pieces {
      stream.receive(piece) {
        items.append($0)
        return true
      }
    }
    if let last = stream.finish() { items.append(last) }
    return items
  }

  private func items(_ text: String) -> [JSONStream.Item] { items([Array(text.utf8)]) }

  @Test("values are the same however their bytes are split") func valuesHoweverTheyArrive() {
    let text = Array("{\"a\": [1, \"}\\\"]\"]}{'b': 'c\"d\\'\\\\'}\r\n12 true\"x\"null".utf8)
    let wanted: [JSONStream.Item] = [
      .value(["a": [1, "}\"]"]]), .value(["b": "c\"d'\\"]), .value(12), .value(true), .value("x"), .value(.null),
    ]
    #expect(items([text]) == wanted)
    #expect(items(text.map { [$0] }) == wanted)
  }

  /// Texts like those of QEMU's tests/qtest/qmp-test.c, and some more. Each is one error; the value after it is parsed.
  @Test(
    "the stream recovers after an error",
    arguments: [
      "{]\n", "{\u{1}", "\u{1}", "{\"bad \u{1}", "{\"execute\": \"x\", \"id\":\"\n", "%p", "@", "{@",
      "{'a': 'b\n",
    ])
  func recoversAfterAnError(_ text: String) {
    let seen = items(text + "{\"a\": 1}")
    #expect(seen.count == 2, "\(seen)")
    guard case .error = seen.first else {
      Issue.record("\(seen)")
      return
    }
    #expect(seen.last == .value(["a": 1]))
  }

  @Test("bytes that are not UTF-8 are one error") func bytesThatNoUTF8Has() {
    for bad in [[0x7b, 0xff], [0x7b, 0x22, 0x61, 0xff], [0xff]] as [[UInt8]] {
      let seen = items([bad + Array("[]".utf8)])
      #expect(seen.count == 2 && seen.last == .value([]), "\(bad) \(seen)")
    }
  }

  @Test("a token longer than the limit is an error, and the next line is parsed") func sizeIsLimited() {
    let text = "\"" + String(repeating: "x", count: 5000) + "\"\n[1]"
    let seen = items([Array(text.utf8)], sizeLimit: 4096)
    #expect(seen.first == .error(.tooLong))
    #expect(seen.last == .value([1]))
    let short = "\"" + String(repeating: "x", count: 4094) + "\""
    #expect(items([Array(short.utf8)], sizeLimit: 4096).count == 1)
  }

  @Test("nesting deeper than the limit is an error") func depthIsLimited() {
    let seen = items([[UInt8](repeating: UInt8(ascii: "["), count: 1_000_000), Array("\n{}".utf8)])
    #expect(seen.contains(.error(.tooDeep)))
    #expect(seen.count < 1000)
  }

  @Test("an incomplete value at the end is an error") func halfAValueIsNone() {
    #expect(items("{\"a\": ") == [.error(.expectingValue)])
    #expect(items("  \n") == [])
    #expect(items("17") == [.value(17)])
  }

  /// After each pause the caller passes the unused bytes again. No item is lost or seen twice.
  @Test("a receiver that pauses after each item loses nothing") func theReceiverCanPause() {
    var stream = JSONStream()
    var rest = Array("[] 1{\"a\": 2}true,'x'\u{1}[3]4\n".utf8)[...]
    var seen: [JSONStream.Item] = []
    while !rest.isEmpty {
      let before = seen.count
      let used = stream.receive(rest) {
        seen.append($0)
        return false
      }
      #expect(seen.count <= before + 1)
      rest = rest.dropFirst(used)
    }
    #expect(stream.finish() == nil && seen.count == 9)
    #expect(
      seen.filter { if case .value = $0 { true } else { false } }
        == [.value([]), .value(1), .value(["a": 2]), .value(true), .value("x"), .value([3]), .value(4)])
  }

  /// No input makes the parser trap. After arbitrary bytes, control characters end any open token, and the next value
  /// is parsed.
  @Test("after random bytes the next value is parsed") func noise() {
    var random = UInt64(0x1234_5678_9abc_def0)
    for _ in 0..<2000 {
      var bytes: [UInt8] = []
      for _ in 0..<40 {
        random ^= random << 13
        random ^= random >> 7
        random ^= random << 17
        let alphabet = Array("{}[]\"'\\,:-1etrn \u{1}ü".utf8) + [0xff]
        bytes.append(alphabet[Int(random % UInt64(alphabet.count))])
      }
      // An escape, a string and a word may be open. Two control characters end them all.
      let seen = items([bytes + [1, 1] + Array("[7]".utf8)])
      #expect(seen.last == .value([7]), "\(bytes)")
    }
  }
}
