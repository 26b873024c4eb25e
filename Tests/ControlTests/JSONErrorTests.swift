import JSON
import Testing

@testable import Control

@Suite struct JSONErrorTests {
  @Test("errors of JSON have QEMU's words")
  func json() {
    func answer(_ text: String) -> String? {
      var stream = JSONStream(sizeLimit: 64, depthLimit: 4)
      var answer: String?
      stream.receive(Array(text.utf8)) {
        if case .error(let problem) = $0 { answer = ErrorText.text(for: problem) }
        return answer == nil
      }
      return answer
    }
    #expect(answer("]") == "JSON parse error, expecting value")
    #expect(answer("{@") == "JSON parse error, stray '@'")
    #expect(answer("\u{1}") == "JSON parse error, stray '\\x01'")
    #expect(answer("[[[[[") == "JSON nesting depth limit exceeded")
    #expect(answer("\"" + String(repeating: "x", count: 99)) == "JSON token size limit exceeded")
    #expect(answer("{\"a\" 1}")?.hasPrefix("JSON parse error, ") == true)
  }
}
