import Testing

@testable import Control

@Suite struct OptionStringTests {
  /// Returns the assignments as `[name=value][flag]`.
  private func assignments(_ text: String, impliedName: String? = nil) throws -> String {
    try OptionString.assignments(text, impliedName: impliedName).map {
      "[" + $0.name + ($0.value.map { "=" + $0 } ?? "") + "]"
    }.joined()
  }

  private static let plain: [(String, String)] = [
    ("", ""),
    ("a=1", "[a=1]"),
    ("a=1,b=2", "[a=1][b=2]"),
    ("a", "[a]"),
    ("a,b=2,c", "[a][b=2][c]"),
    ("a=", "[a=]"),
    ("a=,b", "[a=][b]"),
    ("a=x=y", "[a=x=y]"),
    ("a=1,,2", "[a=1,2]"),
    ("a=,,", "[a=,]"),
    ("a=1,,,b=2", "[a=1,][b=2]"),
    ("a=1,", "[a=1]"),
    ("a=ä,ö=ü", "[a=ä][ö=ü]"),
  ]

  @Test("an option string is split into names and values, and a doubled comma is a comma", arguments: plain)
  func words(_ text: String, _ expected: String) throws {
    #expect(try assignments(text) == expected)
  }

  private static let implied: [(String, String)] = [
    ("x", "[first=x]"),
    ("x,a=1", "[first=x][a=1]"),
    ("a=1,x", "[a=1][x]"),
    ("x,,y,a", "[first=x,y][a]"),
    ("first=x", "[first=x]"),
    (",a=1", "[first=][a=1]"),
  ]

  @Test("a first value without a name gets the implied name", arguments: implied)
  func impliedFirstName(_ text: String, _ expected: String) throws {
    #expect(try assignments(text, impliedName: "first") == expected)
  }

  @Test("a value without a name is refused", arguments: ["=1", "a=1,=2"])
  func aNameMustStandBeforeItsValue(_ text: String) {
    #expect(throws: OptionProblem.emptyName) { try OptionString.assignments(text) }
  }
}
