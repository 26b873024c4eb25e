import Hardware
import Testing

@testable import Machine

/// Finds the PVH entry note among other notes, with each padding that linkers use and next to damaged notes.
@Suite struct ELFNoteTests {
  /// Returns a note whose parts are padded to multiples of `padding`.
  private func note(_ owner: String, _ type: UInt32, _ content: [UInt8], padding: Int) -> [UInt8] {
    func pad(_ bytes: [UInt8]) -> [UInt8] { bytes + [UInt8](repeating: 0, count: -bytes.count & (padding - 1)) }
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt32(owner.utf8.count + 1))
    bytes.append(littleEndian: UInt32(content.count))
    bytes.append(littleEndian: type)
    return pad(pad(bytes + Array(owner.utf8) + [0]) + content)
  }

  private func entry(padding: Int = 4) -> [UInt8] {
    var content: [UInt8] = []
    content.append(littleEndian: UInt64(0x10_0040))
    return note("Xen", 18, content, padding: padding)
  }

  /// Returns the entry point of a kernel with these note segments.
  private func enter(_ segments: [(alignment: UInt64, bytes: [UInt8])]) throws -> UInt32? {
    var elf = SyntheticELF.pvh
    elf.segments.removeLast()
    for segment in segments {
      elf.segments.append(
        SyntheticELF.Segment(
          type: 4, virtualAddress: 0, physicalAddress: 0, content: segment.bytes, alignment: segment.alignment))
    }
    guard case .protectedMode(let entry) = try BootBench(size: 8 << 20).load(elf.bytes) else { return nil }
    return entry.instructionPointer
  }

  @Test(arguments: [5, 8, 20] as [Int])
  func `a segment aligned to 8 has notes padded to 8, or to 4 by older linkers`(size: Int) throws {
    for padding in [8, 4] {
      let bytes = note("GNU", 3, pattern(size), padding: padding) + entry(padding: padding)
      #expect(try enter([(8, bytes)]) == 0x10_0040, "padded to \(padding)")
    }
  }

  @Test func `notes in a segment of any other alignment are padded to 4`() throws {
    for alignment in [0, 1, 4, 16] as [UInt64] {
      #expect(try enter([(alignment, note("GNU", 3, pattern(20), padding: 4) + entry())]) == 0x10_0040)
    }
  }

  @Test func `a segment that cannot be parsed does not hide the note of another`() throws {
    let damaged = [UInt8](repeating: 0xff, count: 40)
    #expect(try enter([(4, damaged), (4, entry())]) == 0x10_0040)
    #expect(try enter([(8, damaged), (4, entry())]) == 0x10_0040)
    #expect(try enter([(4, []), (4, entry())]) == 0x10_0040)
    #expect(throws: BootError.noteInvalid(offset: 0)) { try enter([(4, damaged), (4, [])]) }
    #expect(throws: BootError.noteInvalid(offset: 0)) { try enter([(8, damaged)]) }
    #expect(throws: BootError.noEntryNote) { try enter([(4, [])]) }
  }

  @Test func `a segment beyond the file or of excessive size does not hide the note of another`() throws {
    for (offset, size) in [(1 << 40, 16), (0, 2 << 20), (0, .max)] as [(UInt64, UInt64)] {
      var elf = SyntheticELF.pvh
      elf.segments.insert(
        SyntheticELF.Segment(
          type: 4, virtualAddress: 0, physicalAddress: 0, content: [], fileSize: size, fileOffset: offset), at: 2)
      let bench = BootBench(size: 8 << 20)
      guard case .protectedMode(let entry) = try bench.load(elf.bytes) else { throw BootError.noEntryNote }
      #expect(entry.instructionPointer == 0x10_0040)
    }
  }

  /// Each segment is below the limit, but their sum is above it. Reading many such segments would take minutes.
  @Test func `the sum of all notes is bounded`() {
    var elf = SyntheticELF.pvh
    elf.segments.removeLast()
    let notes = note("GNU", 3, pattern(0x4_0000), padding: 4)
    elf.segments.append(SyntheticELF.Segment(type: 4, virtualAddress: 0, physicalAddress: 0, content: notes))
    let offset = UInt64(SyntheticELF.contentOffset + 0x1800 + 0x700)
    for _ in 0..<4 {
      elf.segments.append(
        SyntheticELF.Segment(
          type: 4, virtualAddress: 0, physicalAddress: 0, content: [], fileSize: UInt64(notes.count),
          fileOffset: offset))
    }
    #expect(BootBench(size: 8 << 20).refusal(elf.bytes) == .notesTooLarge(size: 4 * UInt64(notes.count)))
  }
}
