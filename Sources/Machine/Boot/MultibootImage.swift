import Hardware

/// The Multiboot header of a kernel (Multiboot Specification 0.6.96, section 3.1).
struct MultibootHeader: Hashable {
  /// The header's offset in the file.
  let fileOffset: Int
  let flags: UInt32
  /// The address fields; nil if flag 16 is clear, which makes them invalid.
  let addresses: Addresses?

  struct Addresses: Hashable {
    var header: UInt32
    var load: UInt32
    var loadEnd: UInt32
    var bssEnd: UInt32
    var entry: UInt32
  }

  /// The header is within this many bytes of the file's start, at a multiple of 4.
  static let searchLength = 8192
  private static let magic: UInt32 = 0x1bad_b002
  /// The supported features: page-aligned modules and memory information. The loader always provides both.
  private static let offered: UInt32 = 1 << 0 | 1 << 1
  /// The flags of features that a loader must support, or else refuse the kernel.
  private static let required: UInt32 = 0xffff

  /// - Returns: nil if there is no header.
  init?(searching head: [UInt8]) throws(BootError) {
    var offset = 0
    while offset + 12 <= head.count {
      let flags = head.load(UInt32.self, at: offset + 4)
      if head.load(UInt32.self, at: offset) == Self.magic,
        Self.magic &+ flags &+ head.load(UInt32.self, at: offset + 8) == 0
      {
        try self.init(head: head, at: offset, flags: flags)
        return
      }
      offset += 4
    }
    return nil
  }

  private init(head: [UInt8], at offset: Int, flags: UInt32) throws(BootError) {
    guard flags & Self.required & ~Self.offered == 0 else { throw .multibootFlagsUnsupported(flags) }
    fileOffset = offset
    self.flags = flags
    if flags[bit: 16] {
      guard offset + 32 <= head.count else {
        throw .truncated(.kernel, .multibootHeader, end: UInt64(offset + 32), size: UInt64(head.count))
      }
      func field(_ at: Int) -> UInt32 { head.load(UInt32.self, at: offset + at) }
      addresses = Addresses(
        header: field(12), load: field(16), loadEnd: field(20), bssEnd: field(24), entry: field(28))
    } else {
      addresses = nil
    }
  }
}

/// A Multiboot kernel: its segments and its entry point.
struct MultibootImage {
  let segments: [LoadSegment]
  let entry: UInt32

  init(header: MultibootHeader, head: [UInt8], reader: ImageReader) throws(BootError) {
    let physicalEntry: UInt64
    if let addresses = header.addresses {
      segments = [try Self.segment(addresses, headerOffset: UInt64(header.fileOffset), reader: reader)]
      physicalEntry = UInt64(addresses.entry)
    } else {
      guard ELFImage.recognises(head) else { throw .notELF }
      let elf = try ELFImage(reader)
      segments = elf.segments
      physicalEntry = elf.physicalEntry
    }
    guard let entry = UInt32(exactly: physicalEntry), segments.contains(where: { $0.range.contains(physicalEntry) })
    else { throw .entryOutsideKernel(entry: physicalEntry) }
    self.entry = entry
  }

  /// Makes the segment of a kernel with address fields (the "a.out kludge", 3.1.3). It is one contiguous part of the
  /// file. The header's load address and its file offset determine where that part begins.
  private static func segment(
    _ addresses: MultibootHeader.Addresses, headerOffset: UInt64, reader: ImageReader
  ) throws(BootError) -> LoadSegment {
    let invalid = BootError.multibootAddressesInvalid(
      header: addresses.header, load: addresses.load, loadEnd: addresses.loadEnd, bssEnd: addresses.bssEnd)
    guard addresses.header >= addresses.load, UInt64(addresses.header - addresses.load) <= headerOffset else {
      throw invalid
    }
    let fileOffset = headerOffset - UInt64(addresses.header - addresses.load)
    let load = UInt64(addresses.load)
    // A load end of zero means the file's end; a bss end of zero means that there is no bss.
    var fileSize = reader.image.size - fileOffset
    if addresses.loadEnd != 0 {
      guard addresses.loadEnd > addresses.load else { throw invalid }
      fileSize = UInt64(addresses.loadEnd) - load
      try reader.check(.loadRange, at: fileOffset, count: fileSize)
    }
    var memorySize = fileSize
    if addresses.bssEnd != 0 {
      guard UInt64(addresses.bssEnd) >= load, UInt64(addresses.bssEnd) - load >= fileSize else { throw invalid }
      memorySize = UInt64(addresses.bssEnd) - load
    }
    guard !load.addingReportingOverflow(memorySize).overflow else { throw invalid }
    return LoadSegment(fileOffset: fileOffset, fileSize: fileSize, address: load, memorySize: memorySize)
  }
}
