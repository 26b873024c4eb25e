import Glibc
import Linux
import Testing

/// Tests the functions that read the folders, links and files of sysfs.
final class FolderTests {
  private let folder: String

  init() {
    var template = Array("/tmp/nestling-folder-XXXXXX".utf8CString)
    folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
  }

  deinit {
    for name in (try? Folder.names(in: folder)) ?? [] { unlink("\(folder)/\(name)") }
    rmdir(folder)
  }

  private func write(_ bytes: [UInt8], to name: String) throws {
    try FileDescriptor(opening: "\(folder)/\(name)", O_WRONLY | O_CREAT, mode: 0o600).write(bytes)
  }

  @Test("names are sorted, without the entries for the folder and its parent")
  func namesAreInOrderWithoutTheDots() throws {
    #expect(try Folder.names(in: folder) == [])
    for name in ["b", ".c", "a"] { try write([], to: name) }
    #expect(try Folder.names(in: folder) == [".c", "a", "b"])
  }

  @Test("a link's target is returned unresolved") func aLinkIsToldAsItIs() throws {
    #expect(symlink("../there/is no such", "\(folder)/link") == 0)
    #expect(try Folder.link("\(folder)/link") == "../there/is no such")
    try write([], to: "file")
    #expect(throws: SystemError("readlink", "\(folder)/file", code: EINVAL)) { try Folder.link("\(self.folder)/file") }
  }

  @Test("text is trimmed and limited") func textIsTrimmedAndLimited() throws {
    try write(Array(" \n 0x8086 \t\n".utf8), to: "vendor")
    #expect(try Folder.text(of: "\(folder)/vendor") == "0x8086")
    try write(Array("\n ".utf8), to: "blank")
    #expect(try Folder.text(of: "\(folder)/blank") == "")
    try write([UInt8](repeating: UInt8(ascii: "x"), count: 100_000), to: "long")
    #expect(try Folder.text(of: "\(folder)/long").utf8.count == 1 << 16)
    #expect(try Folder.text(of: "\(folder)/long", limit: 4097).utf8.count == 8192)
    #expect(try Folder.text(of: "\(folder)/long", limit: 1 << 20).utf8.count == 100_000)
  }

  @Test("a missing folder, link or file is an error with its path") func whatIsNotThereIsAnError() {
    #expect(throws: SystemError("opendir", "\(folder)/none", code: ENOENT)) {
      try Folder.names(in: "\(self.folder)/none")
    }
    #expect(throws: SystemError("readlink", "\(folder)/none", code: ENOENT)) {
      try Folder.link("\(self.folder)/none")
    }
    #expect(throws: SystemError("open", "\(folder)/none", code: ENOENT)) { try Folder.text(of: "\(self.folder)/none") }
  }
}
