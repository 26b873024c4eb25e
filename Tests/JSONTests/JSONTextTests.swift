import JSON
import Testing

@Suite struct JSONTextTests {
  private func parse(_ text: String) throws -> JSONValue { try JSONValue(parsing: Array(text.utf8)) }
  private func written(_ value: JSONValue, pretty: Bool = false) -> String {
    String(decoding: value.text(pretty: pretty), as: UTF8.self)
  }

  @Test("values of every type are parsed") func everyKind() throws {
    #expect(try parse(" null ") == .null)
    #expect(try parse("true") == true)
    #expect(try parse("-9223372036854775808") == .integer(.min))
    #expect(try parse("1.5e3") == .real(1500))
    #expect(try parse(#""a\u0000\ud83d\ude00\n""#) == "a\0\u{1f600}\n")
    #expect(try parse(#"{"b": [1, {}], "a": ""}"#) == ["b": [1, [:]], "a": ""])
  }

  /// Parsing and writing keep the order of members. Writing escapes non-ASCII characters.
  @Test("text has QEMU's layout, plain and pretty") func layoutIsQEMUs() throws {
    let text = #"{"zebra": {"x": -1, "y": []}, "apple": [true, null, 2.5, "\u00FC\"\\\u0000"], "": {}}"#
    #expect(written(try parse(text)) == text)
    #expect(
      written(["a": [1, 2], "b": ["c": "d"]], pretty: true) == """
        {
            "a": [
                1,
                2
            ],
            "b": {
                "c": "d"
            }
        }
        """)
    #expect(written("x") == #""x""#)
    #expect(written(.null) == "null")
  }

  /// As with QEMU's qnum, a number is a signed integer if it fits, else an unsigned one, else a real number.
  @Test("integers of 64 bits are exact") func integersOf64BitsAreExact() throws {
    let text =
      #"[{"a\"1": 18446744073709551615, "9": [9223372036854775807]}, 2.5, 9223372036854775808, -1, "#
      + #""18446744073709551615\\", -9223372036854775808, 1e3, 18446744073709551614]"#
    let value: JSONValue = [
      ["a\"1": .unsigned(.max), "9": [.integer(.max)]], .real(2.5), .unsigned(1 << 63), -1,
      "18446744073709551615\\", .integer(.min), .real(1000), .unsigned(.max - 1),
    ]
    #expect(try parse(text) == value)
    #expect(written(value) == text.replacing("1e3", with: "1000.0"))
    #expect(written(try parse("9223372036854775808"), pretty: true) == "9223372036854775808")
    #expect(try parse("18446744073709551616") == .real(0x1p64))
    #expect(try parse("-9223372036854775809") == .real(-0x1p63))
    #expect(JSONValue(UInt64(1) << 63) == .unsigned(1 << 63) && JSONValue(UInt64(7)) == 7)
  }

  /// The position of an error is an offset in the original text. The values after a large integer are parsed.
  @Test("64-bit integers do not shift the positions of errors and values")
  func integersOf64BitsAmongErrorsAndOtherValues() throws {
    let error = #expect(throws: JSONValue.ParseError.self) { try parse("[18446744073709551615 x]") }
    #expect(error?.position == 23)
    let text = Array("18446744073709551615 [9223372036854775808]17".utf8)
    var position = 0
    #expect(try JSONValue.next(in: text, at: &position) == .unsigned(.max))
    #expect(try JSONValue.next(in: text, at: &position) == [.unsigned(1 << 63)])
    #expect(try JSONValue.next(in: text, at: &position) == 17)
  }

  @Test(
    "malformed text is an error",
    arguments: [
      "", "{", "[1,]", "{\"a\" 1}", "nul", "01", "'a'", "{\"a\": 1, \"a\": 2}", "[1] 2", "\"\u{1}\"", "1e999",
      "018446744073709551615", "-", "18446744073709551615.", #""\ud800""#,
      String(repeating: "9", count: 400),
    ])
  func whatIsNoValue(_ text: String) {
    #expect(throws: JSONValue.ParseError.self) { try parse(text) }
  }

  @Test("invalid UTF-8 is an error") func invalidUTF8IsRefused() {
    #expect(throws: JSONValue.ParseError.self) { try JSONValue(parsing: [0x22, 0xc3, 0x28, 0x22]) }
  }

  @Test("values are parsed one after the other") func oneValueAfterTheOther() throws {
    let text = Array(#"{"a":1} [2]3 "#.utf8)
    var position = 0
    #expect(try JSONValue.next(in: text, at: &position) == ["a": 1])
    #expect(position == 7)
    #expect(try JSONValue.next(in: text, at: &position) == [2])
    #expect(try JSONValue.next(in: text, at: &position) == 3)
    #expect(throws: JSONValue.ParseError.self) { try JSONValue.next(in: text, at: &position) }
    position = 99
    #expect(throws: JSONValue.ParseError.self) { try JSONValue.next(in: text, at: &position) }
  }

  @Test("nesting of 1000 levels is parsed, and deeper nesting is an error") func depthHasALimit() throws {
    func nested(_ depth: Int) -> String { String(repeating: "[", count: depth) + String(repeating: "]", count: depth) }
    let deep = try parse(nested(1000))
    #expect(written(deep) == nested(1000))
    #expect(throws: JSONValue.ParseError.self) { try parse(nested(1500)) }
    #expect(throws: JSONValue.ParseError.self) { try parse(nested(100_000)) }
  }

  @Test("members are read, set and removed by name, in order") func membersByName() {
    var object = JSONObject()
    object["a"] = 1
    object["b"] = 2
    object["a"] = 3
    #expect(object.members.map(\.name) == ["a", "b"] && object["a"] == 3)
    object["a"] = nil
    #expect(object.members.map(\.name) == ["b"] && object["a"] == nil)
  }
}
