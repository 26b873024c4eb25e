import FuzzTargets
import Glibc
import Testing

/// Replays the committed corpus without libFuzzer, so that fixed bugs stay fixed.
@Suite("fuzzing corpus")
struct CorpusTests {
  @Test("no input of the corpus has a finding", arguments: FuzzTarget.all.map(\.name))
  func replay(_ name: String) throws {
    let target = try #require(FuzzTarget.all.first { $0.name == name })
    let folder = "\(Self.corpus)/\(name)"
    let files = Self.files(in: folder)
    #expect(files.count >= 5, "the corpus of \(name) is in \(folder)")
    for file in files {
      let bytes = try #require(Self.content(of: "\(folder)/\(file)"))
      if let finding = target.run(bytes) { Issue.record("\(folder)/\(file): \(finding)") }
      // The first half is another input.
      if let finding = target.run(Array(bytes.prefix(bytes.count / 2))) {
        Issue.record("\(folder)/\(file), the first half: \(finding)")
      }
    }
  }

  /// Tests/Fuzz/Corpus, relative to this file.
  private static let corpus: String = {
    let parts = #filePath.split(separator: "/").dropLast(2)
    return "/" + parts.joined(separator: "/") + "/Fuzz/Corpus"
  }()

  private static func files(in folder: String) -> [String] {
    guard let stream = opendir(folder) else { return [] }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if !name.hasPrefix(".") { names.append(name) }
    }
    return names.sorted()
  }

  private static func content(of path: String) -> [UInt8]? {
    guard let file = fopen(path, "rb") else { return nil }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 16)
    let count = fread(&bytes, 1, bytes.count, file)
    return Array(bytes.prefix(count))
  }
}
