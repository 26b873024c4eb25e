import Glibc
import Linux
import Testing

@Suite struct ScatteredFileTests {
  private let folder = TemporaryFolder()
  private let memory: GuestMemory
  private typealias Segment = ScatteredFile.Segment

  init() throws { memory = try GuestMemory(size: 0x40_0000, lowLimit: 0x20_0000) }

  private func pattern(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 8) } }

  private func store(_ bytes: [UInt8], _ address: UInt64) -> Bool { memory.write(bytes.span.bytes, to: address) }

  private func copy(_ address: UInt64, _ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    return memory.read(from: address, into: &raw) ? bytes : nil
  }

  @Test("one read fills several segments") func readsIntoManyPlaces() throws {
    let bytes = pattern(0x3000)
    let file = try ScatteredFile(opening: folder.make("disk", bytes), readOnly: false, memory: memory)
    #expect(file.size == 0x3000)
    try file.read(
      at: 0x101,
      into: [
        Segment(address: 0x1000, count: 1), Segment(address: 1 << 32, count: 0x1000),
        Segment(address: 0x1f_fff0, count: 16),
      ])
    #expect(copy(0x1000, 1) == [bytes[0x101]])
    #expect(copy(1 << 32, 0x1000) == Array(bytes[0x102..<0x1102]))
    #expect(copy(0x1f_fff0, 16) == Array(bytes[0x1102..<0x1112]))
  }

  /// The counts are near IOV_MAX (1024) and above it. Adjacent segments differ in length.
  @Test("any number of segments is read and written", arguments: [1023, 1024, 1025, 3000])
  func manySegments(count: Int) throws {
    var segments: [Segment] = []
    var address: UInt64 = 0x1000
    for index in 0..<count {
      segments.append(Segment(address: address, count: 1 + index % 61))
      address += 64
    }
    let total = segments.reduce(0) { $0 + $1.count }
    let bytes = pattern(total)
    let path = folder.make("many-\(count)", bytes)
    let file = try ScatteredFile(opening: path, readOnly: false, memory: memory)
    try file.read(at: 0, into: segments)
    var seen: [UInt8] = []
    for segment in segments { seen += copy(segment.address, segment.count) ?? [] }
    #expect(seen == bytes)
    try memory.clear()
    for (index, segment) in segments.enumerated() {
      let part = [UInt8](repeating: UInt8(truncatingIfNeeded: index), count: segment.count)
      #expect(store(part, segment.address))
    }
    try file.write(at: 0, from: segments)
    var expected: [UInt8] = []
    for (index, segment) in segments.enumerated() {
      expected += [UInt8](repeating: UInt8(truncatingIfNeeded: index), count: segment.count)
    }
    #expect(try file.bytes(at: 0, count: total) == expected)
  }

  @Test("empty segments move nothing") func segmentsWithoutBytes() throws {
    let file = try ScatteredFile(opening: folder.make("disk", pattern(64)), readOnly: false, memory: memory)
    try file.read(at: 0, into: [])
    try file.read(
      at: 1,
      into: [
        Segment(address: 0, count: 0), Segment(address: 0x10, count: 2), Segment(address: 0x20, count: 0),
        Segment(address: 0x30, count: 1), Segment(address: 0x40, count: 0),
      ])
    #expect(copy(0x10, 2) == Array(pattern(64)[1..<3]))
    #expect(copy(0x30, 1) == [pattern(64)[3]])
    try file.read(at: 0, into: [Segment(address: 0, count: 0)])
  }

  @Test("a read beyond the end of the file is an error") func aFileThatEndsTooSoon() throws {
    let path = folder.make("disk", pattern(0x1000))
    let file = try ScatteredFile(opening: path, readOnly: false, memory: memory)
    let error = #expect(throws: SystemError.self) {
      try file.read(at: 0xf00, into: [Segment(address: 0, count: 0x200)])
    }
    #expect(error?.code == EIO)
    #expect(error?.operand == path)
    #expect(throws: SystemError.self) { try file.read(at: 0x1000, into: [Segment(address: 0, count: 1)]) }
    truncate(path, 0x800)
    #expect(throws: SystemError.self) { try file.read(at: 0x800, into: [Segment(address: 0, count: 1)]) }
    try file.read(at: 0x7ff, into: [Segment(address: 0, count: 1)])
    #expect(try file.bytes(at: 0x7fe, count: 100).count == 2)
    #expect(try file.bytes(at: 0x900, count: 1).isEmpty)
    #expect(throws: SystemError.self) { try file.bytes(at: .max, count: 1) }
  }

  @Test("an offset or size that no file can have is an error") func offsetsThatNoFileHas() throws {
    let file = try ScatteredFile(opening: folder.make("disk", pattern(64)), readOnly: false, memory: memory)
    for offset in [UInt64(Int.max), 1 << 63, .max] {
      #expect(throws: SystemError.self) { try file.read(at: offset, into: [Segment(address: 0, count: 8)]) }
      #expect(throws: SystemError.self) { try file.write(at: offset, from: [Segment(address: 0, count: 8)]) }
      #expect(throws: SystemError.self) { try file.punchHole(at: offset, count: 8) }
      #expect(throws: SystemError.self) { try file.zero(at: 0, count: offset) }
    }
    #expect(try file.bytes(at: 0, count: 64) == pattern(64))
  }

  @Test("a segment outside RAM is an error, and nothing moves") func segmentsThatAreNotMemory() throws {
    let file = try ScatteredFile(opening: folder.make("disk", pattern(0x1000)), readOnly: false, memory: memory)
    for address in [0x20_0000, 0x1f_ffff, (1 << 32) - 1, (1 << 32) + 0x20_0000, .max, .max - 1] as [UInt64] {
      let error = #expect(throws: SystemError.self) {
        try file.read(at: 0, into: [Segment(address: 0, count: 4), Segment(address: address, count: 2)])
      }
      #expect(error?.code == EFAULT)
      #expect(throws: SystemError.self) { try file.write(at: 0, from: [Segment(address: address, count: 2)]) }
    }
    // Nothing has moved: the whole batch is checked before the call.
    #expect(copy(0, 4) == [0, 0, 0, 0])
    #expect(try file.bytes(at: 0, count: 0x1000) == pattern(0x1000))
  }

  @Test("a read-only file can be read and not written") func aReadOnlyFileIsNotWritten() throws {
    let file = try ScatteredFile(opening: folder.make("disk", pattern(64)), readOnly: true, memory: memory)
    #expect(file.isReadOnly)
    let error = #expect(throws: SystemError.self) { try file.write(at: 0, from: [Segment(address: 0, count: 4)]) }
    #expect(error?.code == EBADF)
    #expect(throws: SystemError.self) { try file.punchHole(at: 0, count: 4) }
    #expect(try file.bytes(at: 0, count: 64) == pattern(64))
    try file.read(at: 0, into: [Segment(address: 0, count: 64)])
  }

  @Test("opening a path that is not an image is an error with this path") func whatIsNoImage() {
    for (path, code) in [
      (folder.file("missing"), ENOENT), (folder.path, EISDIR), ("/dev/null", EINVAL),
      (folder.make("secret", []) + "/below", ENOTDIR),
    ] {
      let error = #expect(throws: SystemError.self) {
        try ScatteredFile(opening: path, readOnly: true, memory: memory)
      }
      #expect(error?.code == code)
      #expect(error?.operand == path)
    }
  }

  @Test("a punched hole reads as zero, and the file keeps its size") func holesReadAsZero() throws {
    let file = try ScatteredFile(opening: folder.make("disk", pattern(0x4000)), readOnly: false, memory: memory)
    do {
      try file.punchHole(at: 0x1000, count: 0x1000)
    } catch {
      // The file system of /tmp may not support holes.
      #expect(error.code == EOPNOTSUPP)
      return
    }
    #expect(try file.bytes(at: 0x1000, count: 0x1000) == [UInt8](repeating: 0, count: 0x1000))
    #expect(try file.bytes(at: 0xfff, count: 1) == [pattern(0x4000)[0xfff]])
    #expect(try file.bytes(at: 0x2000, count: 0x2000) == Array(pattern(0x4000)[0x2000...]))
    // The file does not grow.
    try file.punchHole(at: 0x3000, count: 0x10000)
    #expect(try file.bytes(at: 0, count: 0x10000).count == 0x4000)
    try file.synchronize()
  }

  @Test("a zeroed range reads as zero") func zeroedRangesReadAsZero() throws {
    let file = try ScatteredFile(opening: folder.make("disk", pattern(0x4000)), readOnly: false, memory: memory)
    do {
      try file.zero(at: 0x1001, count: 0xfff)
    } catch {
      #expect(error.code == EOPNOTSUPP)
      return
    }
    #expect(try file.bytes(at: 0x1001, count: 0xfff) == [UInt8](repeating: 0, count: 0xfff))
    #expect(try file.bytes(at: 0x1000, count: 1) == [pattern(0x4000)[0x1000]])
  }
}
