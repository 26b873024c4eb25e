import Hardware

/// A bzImage. Each field that the loader reads can be set to a wrong value.
struct SyntheticLinux {
  var setupSectors: UInt8 = 3
  var payload = pattern(0x3000)
  /// In units of 16 bytes; nil for the payload's size.
  var systemSize: UInt32?
  var bootFlag: UInt16 = 0xaa55
  var version: UInt16 = 0x20f
  /// The operand of the jump: the end of the header, less 0x202.
  var headerLength: UInt8 = 0x6a
  var loadFlags: UInt8 = 1
  var extendedLoadFlags: UInt16 = 1
  var relocatable = true
  var alignment: UInt32 = 0x20_0000
  var minimumAlignment: UInt8 = 21
  var preferredAddress: UInt64 = 0x20_0000
  var initialSize: UInt32 = 0x10_0000
  var commandLineLimit: UInt32 = 2047
  var initialRAMDiskLast: UInt32 = 0x7fff_ffff
  /// Bytes after the kernel in the file, such as a signature.
  var tail: [UInt8] = []

  /// The payload's offset in the file.
  var payloadOffset: Int { ((setupSectors == 0 ? 4 : Int(setupSectors)) + 1) * 512 }

  var bytes: [UInt8] {
    var bytes = [UInt8](repeating: 0xcc, count: payloadOffset)
    bytes[0x1f1] = setupSectors
    bytes.store(systemSize ?? UInt32(payload.count / 16), at: 0x1f4)
    bytes.store(bootFlag, at: 0x1fe)
    bytes[0x200] = 0xeb
    bytes[0x201] = headerLength
    bytes.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
    bytes.store(version, at: 0x206)
    bytes[0x211] = loadFlags
    bytes.store(initialRAMDiskLast, at: 0x22c)
    bytes.store(alignment, at: 0x230)
    bytes[0x234] = relocatable ? 1 : 0
    bytes[0x235] = minimumAlignment
    bytes.store(extendedLoadFlags, at: 0x236)
    bytes.store(commandLineLimit, at: 0x238)
    bytes.store(preferredAddress, at: 0x258)
    bytes.store(initialSize, at: 0x260)
    return bytes + payload + tail
  }
}

/// An ELF executable of either class.
struct SyntheticELF {
  struct Segment {
    var type: UInt32 = 1
    var virtualAddress: UInt64
    var physicalAddress: UInt64
    var content: [UInt8]
    /// Nil for the content's size.
    var memorySize: UInt64?
    var fileSize: UInt64?
    var fileOffset: UInt64?
    var alignment: UInt64 = 0x1000
  }

  var is64Bit = true
  var elfClass: UInt8?
  var byteOrder: UInt8 = 1
  var type: UInt16 = 2
  var machine: UInt16 = 62
  var entry: UInt64 = 0x10_0000
  var segments: [Segment] = []
  var programHeaderSize: UInt16?
  var programHeaderCount: UInt16?

  /// The file offset of the first segment's content.
  static let contentOffset = 0x400

  var bytes: [UInt8] {
    var bytes: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, elfClass ?? (is64Bit ? 2 : 1), byteOrder, 1]
    bytes += [UInt8](repeating: 0, count: 9)
    bytes.append(littleEndian: type)
    bytes.append(littleEndian: machine)
    bytes.append(littleEndian: UInt32(1))
    func address(_ value: UInt64) {
      if is64Bit { bytes.append(littleEndian: value) } else { bytes.append(littleEndian: UInt32(value)) }
    }
    address(entry)
    address(is64Bit ? 64 : 52)
    address(0)
    bytes.append(littleEndian: UInt32(0))
    bytes.append(littleEndian: UInt16(is64Bit ? 64 : 52))
    bytes.append(littleEndian: programHeaderSize ?? (is64Bit ? 56 : 32))
    bytes.append(littleEndian: programHeaderCount ?? UInt16(segments.count))
    bytes += [UInt8](repeating: 0, count: 6)

    var offset = UInt64(Self.contentOffset)
    for segment in segments {
      bytes.append(littleEndian: segment.type)
      if is64Bit { bytes.append(littleEndian: UInt32(7)) }
      address(segment.fileOffset ?? offset)
      address(segment.virtualAddress)
      address(segment.physicalAddress)
      address(segment.fileSize ?? UInt64(segment.content.count))
      address(segment.memorySize ?? UInt64(segment.content.count))
      if !is64Bit { bytes.append(littleEndian: UInt32(7)) }
      address(segment.alignment)
      offset += UInt64(segment.content.count)
    }
    bytes += [UInt8](repeating: 0, count: Self.contentOffset - bytes.count)
    for segment in segments { bytes += segment.content }
    return bytes
  }

  static func note(owner: String, type: UInt32, content: [UInt8]) -> [UInt8] {
    var bytes: [UInt8] = []
    let name = Array(owner.utf8) + [0]
    bytes.append(littleEndian: UInt32(name.count))
    bytes.append(littleEndian: UInt32(content.count))
    bytes.append(littleEndian: type)
    bytes += name + [UInt8](repeating: 0, count: -name.count & 3)
    bytes += content + [UInt8](repeating: 0, count: -content.count & 3)
    return bytes
  }

  /// A kernel with a PVH entry at 1 MiB + 0x40, and a bss.
  static var pvh: SyntheticELF {
    var entry: [UInt8] = []
    entry.append(littleEndian: UInt64(0x10_0040))
    let notes = note(owner: "GNU", type: 3, content: pattern(7)) + note(owner: "Xen", type: 18, content: entry)
    return SyntheticELF(
      entry: 0xffff_ffff_8010_0000,
      segments: [
        Segment(virtualAddress: 0xffff_ffff_8010_0000, physicalAddress: 0x10_0000, content: pattern(0x1800)),
        Segment(
          virtualAddress: 0xffff_ffff_8020_0000, physicalAddress: 0x20_0000, content: pattern(0x700, seed: 9),
          memorySize: 0x1_2345),
        Segment(type: 4, virtualAddress: 0, physicalAddress: 0, content: notes),
      ])
  }
}

/// The header of a Multiboot kernel.
struct SyntheticMultiboot {
  var flags: UInt32 = 3
  var addresses: [UInt32] = []
  var checksumError: UInt32 = 0

  var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt32(0x1bad_b002))
    bytes.append(littleEndian: flags)
    bytes.append(littleEndian: 0 &- 0x1bad_b002 &- flags &+ checksumError)
    for address in addresses { bytes.append(littleEndian: address) }
    return bytes
  }

  /// Returns an ELF kernel linked high and loaded at 1 MiB, with the header at the start of its only segment.
  static func elf(is64Bit: Bool, header: SyntheticMultiboot = SyntheticMultiboot()) -> SyntheticELF {
    let base: UInt64 = is64Bit ? 0xffff_ffff_8010_0000 : 0xc010_0000
    return SyntheticELF(
      is64Bit: is64Bit, machine: is64Bit ? 62 : 3, entry: base + 0x80,
      segments: [
        SyntheticELF.Segment(
          virtualAddress: base, physicalAddress: 0x10_0000, content: header.bytes + pattern(0x900), memorySize: 0x3000)
      ])
  }

  /// Returns a kernel that is not an ELF file: its header, 0x20 bytes into the file, holds the load addresses.
  static func flat(loadEnd: UInt32 = 0x10_0800, bssEnd: UInt32 = 0x10_2000, entry: UInt32 = 0x10_0100) -> [UInt8] {
    let header = SyntheticMultiboot(
      flags: 1 << 16 | 3, addresses: [0x10_0020, 0x10_0000, loadEnd, bssEnd, entry])
    return pattern(0x20) + header.bytes + pattern(0x1000)
  }
}
