import Hardware

/// An ELF executable for x86, 32-bit or 64-bit: its segments and notes (System V ABI, "Object Files" and "Program
/// Loading"). It is loaded at its physical addresses, because a kernel starts without paging.
struct ELFImage {
  struct ProgramHeader: Hashable {
    /// p_type.
    var type: UInt32
    /// p_offset.
    var fileOffset: UInt64
    /// p_vaddr.
    var virtualAddress: UInt64
    /// p_paddr.
    var physicalAddress: UInt64
    /// p_filesz.
    var fileSize: UInt64
    /// p_memsz.
    var memorySize: UInt64
    /// p_align.
    var alignment: UInt64
  }

  let is64Bit: Bool
  /// e_entry, which may be a virtual address.
  let entry: UInt64
  let programHeaders: [ProgramHeader]
  /// The segments to load: at least one. Each is within the file and within the address space.
  let segments: [LoadSegment]
  private let reader: ImageReader

  /// PT_LOAD.
  private static let load: UInt32 = 1
  /// PT_NOTE.
  private static let note: UInt32 = 4
  /// The most bytes of notes that are searched in one file.
  private static let notesLimit: UInt64 = 1 << 20

  static func recognises(_ head: [UInt8]) -> Bool { head.starts(with: [0x7f, 0x45, 0x4c, 0x46]) }

  /// - Parameter reader: reads an image that `recognises` accepted.
  init(_ reader: ImageReader) throws(BootError) {
    self.reader = reader
    let identification = try reader.read(.elfHeader, at: 0, count: 20)
    let elfClass = identification[4]
    let byteOrder = identification[5]
    let is64Bit = elfClass == 2
    let type = identification.load(UInt16.self, at: 16)
    let machine = identification.load(UInt16.self, at: 18)
    // ELFCLASS32 or 64; ELFDATA2LSB; ET_EXEC or ET_DYN; EM_386 or EM_X86_64.
    guard elfClass == 1 || elfClass == 2, byteOrder == 1, type == 2 || type == 3, machine == 3 || machine == 62 else {
      throw .elfUnsupported(elfClass: elfClass, byteOrder: byteOrder, machine: machine, type: type)
    }
    self.is64Bit = is64Bit

    let header = try reader.read(.elfHeader, at: 0, count: is64Bit ? 64 : 52)
    entry = is64Bit ? header.load(UInt64.self, at: 24) : UInt64(header.load(UInt32.self, at: 24))
    let tableOffset = is64Bit ? header.load(UInt64.self, at: 32) : UInt64(header.load(UInt32.self, at: 28))
    let entrySize = header.load(UInt16.self, at: is64Bit ? 54 : 42)
    let entryCount = Int(header.load(UInt16.self, at: is64Bit ? 56 : 44))
    guard entryCount > 0 else { throw .noSegments }
    guard entrySize == (is64Bit ? 56 : 32) else { throw .programHeaderSizeInvalid(entrySize) }
    let table = try reader.read(.programHeaders, at: tableOffset, count: entryCount * Int(entrySize))
    programHeaders = (0..<entryCount).map { index in
      Self.parse(table, at: index * Int(entrySize), is64Bit: is64Bit)
    }

    var segments: [LoadSegment] = []
    for (index, header) in programHeaders.enumerated()
    where header.type == Self.load && (header.memorySize > 0 || header.fileSize > 0) {
      guard header.fileSize <= header.memorySize,
        !header.physicalAddress.addingReportingOverflow(header.memorySize).overflow
      else {
        throw .segmentInvalid(
          index: index, address: header.physicalAddress, fileSize: header.fileSize, memorySize: header.memorySize)
      }
      try reader.check(.segment, at: header.fileOffset, count: header.fileSize)
      segments.append(
        LoadSegment(
          fileOffset: header.fileOffset, fileSize: header.fileSize, address: header.physicalAddress,
          memorySize: header.memorySize))
    }
    guard !segments.isEmpty else { throw .noSegments }
    self.segments = segments
  }

  private static func parse(_ table: [UInt8], at offset: Int, is64Bit: Bool) -> ProgramHeader {
    func word(_ at: Int) -> UInt64 { UInt64(table.load(UInt32.self, at: offset + at)) }
    func long(_ at: Int) -> UInt64 { table.load(UInt64.self, at: offset + at) }
    let type = table.load(UInt32.self, at: offset)
    if is64Bit {
      return ProgramHeader(
        type: type, fileOffset: long(8), virtualAddress: long(16), physicalAddress: long(24), fileSize: long(32),
        memorySize: long(40), alignment: long(48))
    }
    return ProgramHeader(
      type: type, fileOffset: word(4), virtualAddress: word(8), physicalAddress: word(12), fileSize: word(16),
      memorySize: word(20), alignment: word(28))
  }

  /// The entry point's physical address. e_entry is a virtual address if a segment contains it as a virtual address.
  var physicalEntry: UInt64 {
    for header in programHeaders
    where header.type == Self.load && entry >= header.virtualAddress
      && entry - header.virtualAddress < header.memorySize
    {
      return header.physicalAddress &+ (entry - header.virtualAddress)
    }
    return entry
  }

  /// Returns whether a segment of the image contains this physical address.
  func loads(_ address: UInt64) -> Bool { segments.contains { $0.range.contains(address) } }

  /// Returns the content of the first note with this owner and type. This skips segments that cannot be parsed. If no
  /// segment has the note, it throws the error of the first segment that it skipped.
  func note(owner: String, type: UInt32) throws(BootError) -> [UInt8]? {
    var problem: BootError?
    var total: UInt64 = 0
    for header in programHeaders where header.type == Self.note && header.fileSize > 0 {
      guard header.fileSize <= Self.notesLimit - total else {
        problem = problem ?? .notesTooLarge(size: total + min(header.fileSize, .max - total))
        continue
      }
      total += header.fileSize
      do throws(BootError) {
        let bytes = try reader.read(.notes, at: header.fileOffset, count: Int(header.fileSize))
        if let content = try Self.find(owner: owner, type: type, in: bytes, alignment: header.alignment) {
          return content
        }
      } catch {
        if case .readFailed = error { throw error }
        problem = problem ?? error
      }
    }
    if let problem { throw problem }
    return nil
  }

  /// Finds a note in a segment. In a segment with alignment 8, the System V ABI pads notes to 8 bytes, but linkers
  /// before binutils 2.31 padded them to 4 bytes. So this tries both paddings.
  private static func find(
    owner: String, type: UInt32, in bytes: [UInt8], alignment: UInt64
  ) throws(BootError) -> [UInt8]? {
    guard alignment == 8 else { return try find(owner: owner, type: type, in: bytes, padding: 4) }
    var problem: BootError?
    do throws(BootError) {
      if let content = try find(owner: owner, type: type, in: bytes, padding: 8) { return content }
    } catch {
      problem = error
    }
    do throws(BootError) {
      return try find(owner: owner, type: type, in: bytes, padding: 4)
    } catch {
      if let problem { throw problem }
      return nil
    }
  }

  private static func find(
    owner: String, type: UInt32, in bytes: [UInt8], padding: Int
  ) throws(BootError) -> [UInt8]? {
    let name = Array(owner.utf8) + [0]
    func padded(_ offset: Int) -> Int { (offset + padding - 1) & ~(padding - 1) }
    var offset = 0
    while offset + 12 <= bytes.count {
      // The sizes have 32 bits and the sums 64, so nothing can overflow.
      let nameSize = Int(bytes.load(UInt32.self, at: offset))
      let contentSize = Int(bytes.load(UInt32.self, at: offset + 4))
      let nameStart = offset + 12
      let contentStart = padded(nameStart + nameSize)
      guard contentStart + contentSize <= bytes.count else { throw .noteInvalid(offset: offset) }
      if bytes.load(UInt32.self, at: offset + 8) == type, nameSize == name.count,
        bytes[nameStart..<nameStart + nameSize].elementsEqual(name)
      {
        return Array(bytes[contentStart..<contentStart + contentSize])
      }
      offset = padded(contentStart + contentSize)
    }
    return nil
  }
}
