import Glibc
import Linux
import Testing

/// Locks as QEMU's file driver takes them: bytes from 100 on for permissions in use, from 200 on for permissions not
/// shared.
@Suite("image locks")
struct ImageLockTests {
  private let folder = TemporaryFolder()
  private let memory: GuestMemory
  private let path: String

  init() throws {
    memory = try GuestMemory(size: 0x40_0000, lowLimit: 0x20_0000)
    path = folder.make("disk", [UInt8](repeating: 0, count: 512))
  }

  private func open(readOnly: Bool) throws -> ScatteredFile {
    try ScatteredFile(opening: path, readOnly: readOnly, memory: memory)
  }

  @Test("two writers exclude each other, even in one process, until the first closes its file")
  func writers() throws {
    do {
      let first = try open(readOnly: false)
      try first.lock()
      let second = try open(readOnly: false)
      #expect(throws: ImageLockError.notGranted(.write)) { try second.lock() }
      withExtendedLifetime(first) {}
    }
    let third = try open(readOnly: false)
    try third.lock()
    withExtendedLifetime(third) {}
  }

  @Test("readers share an image with each other but not with a writer")
  func readers() throws {
    do {
      let first = try open(readOnly: true)
      try first.lock()
      let second = try open(readOnly: true)
      try second.lock()
      let writer = try open(readOnly: false)
      #expect(throws: ImageLockError.notGranted(.write)) { try writer.lock() }
      withExtendedLifetime((first, second)) {}
    }
    let writer = try open(readOnly: false)
    try writer.lock()
    let reader = try open(readOnly: true)
    #expect(throws: ImageLockError.notShared(.write)) { try reader.lock() }
    withExtendedLifetime(writer) {}
  }

  /// Returns the locked bytes. A line of /proc/locks: `1: OFDLCK ADVISORY READ -1 fe:00:1234 100 101`.
  private func lockedBytes() throws -> Set<Int> {
    var status = stat()
    unsafe stat(path, &status)
    let lines = try FileDescriptor(opening: "/proc/locks", O_RDONLY)
    var text: [UInt8] = []
    while let part = try lines.read(count: 65536), !part.isEmpty { text += part }
    var bytes = Set<Int>()
    for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
      let fields = line.split(separator: " ")
      guard fields.count >= 8, fields[1] == "OFDLCK", fields[3] == "READ",
        fields[5].split(separator: ":").last == "\(status.st_ino)", let first = Int(fields[6]),
        let last = Int(fields[7])
      else { continue }
      for byte in first...last { bytes.insert(byte) }
    }
    return bytes
  }

  @Test("the locked bytes are the ones that QEMU uses")
  func layout() throws {
    do {
      let reader = try open(readOnly: true)
      try reader.lock()
      #expect(try lockedBytes() == [100, 201])
      withExtendedLifetime(reader) {}
    }
    let writer = try open(readOnly: false)
    try writer.lock()
    #expect(try lockedBytes() == [100, 101, 201])
    withExtendedLifetime(writer) {}
  }
}
