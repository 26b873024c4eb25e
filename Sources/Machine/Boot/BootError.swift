/// Why a kernel cannot be started. The cause is a file or the amount of memory. The description is one line that says
/// what was found and what was expected.
public enum BootError: Error, Hashable, Sendable {
  /// The file with the error.
  public enum File: String, Hashable, Sendable {
    case kernel
    case initialRAMDisk = "initrd"
  }

  /// The part of a file with the error.
  public enum Part: String, Hashable, Sendable {
    case setupHeader = "setup header"
    case protectedModeKernel = "protected-mode kernel"
    case elfHeader = "ELF header"
    case programHeaders = "ELF program headers"
    case segment = "ELF segment"
    case notes = "ELF notes"
    case multibootHeader = "Multiboot header"
    case loadRange = "Multiboot load range"
  }

  /// The data for which there is no room.
  public enum Content: String, Hashable, Sendable {
    case pageTables = "page tables"
    case descriptorTable = "descriptor table"
    case bootParameters = "boot parameters"
    case commandLine = "command line"
    case startInformation = "start information"
    case moduleList = "module list"
    case memoryMap = "memory map"
  }

  case unknownFormat(size: UInt64)
  case readFailed(File, ImageSourceError)
  /// `end` is the end of the part, in bytes from the file's start; nil if it needs more than 64 bits.
  case truncated(File, Part, end: UInt64?, size: UInt64)

  case setupHeaderTooShort(end: Int)
  case protocolTooOld(version: UInt16)
  case not64Bit(extendedLoadFlags: UInt16)
  case notLoadedHigh
  case kernelAlignmentInvalid(UInt32)

  case elfUnsupported(elfClass: UInt8, byteOrder: UInt8, machine: UInt16, type: UInt16)
  case programHeaderSizeInvalid(UInt16)
  case noSegments
  case segmentInvalid(index: Int, address: UInt64, fileSize: UInt64, memorySize: UInt64)
  case segmentsOverlap(index: Int, address: UInt64, memorySize: UInt64)
  case notesTooLarge(size: UInt64)
  case noteInvalid(offset: Int)
  case noEntryNote

  case multibootFlagsUnsupported(UInt32)
  case multibootAddressesInvalid(header: UInt32, load: UInt32, loadEnd: UInt32, bssEnd: UInt32)
  case notELF

  case entryOutsideKernel(entry: UInt64)
  case kernelDoesNotFit(address: UInt64, size: UInt64, memoryEnd: UInt64)
  case commandLineTooLong(length: Int, limit: UInt64)
  case initialRAMDiskUnrecognised(size: UInt64)
  case initialRAMDiskDoesNotFit(size: UInt64, available: UInt64)
  case noRoom(Content, size: UInt64)
  /// The address range is RAM in the layout, but not in the memory.
  case notMemory(address: UInt64, size: UInt64)
}

extension BootError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .unknownFormat(let size):
      "kernel is neither a Linux bzImage, nor Multiboot, nor ELF with a PVH entry (\(size) bytes)"
    case .readFailed(let file, let error):
      "\(file.rawValue) cannot be read: \(Self.describe(error))"
    case .truncated(let file, let part, let end?, let size):
      "\(file.rawValue) is truncated: its \(part.rawValue) ends at byte \(end), the file at byte \(size)"
    case .truncated(let file, let part, nil, let size):
      "\(file.rawValue) is damaged: its \(part.rawValue) ends beyond any file, the file at byte \(size)"
    case .setupHeaderTooShort(let end):
      "kernel's setup header ends at \(hex(end)), before the fields of boot protocol 2.12"
    case .protocolTooOld(let version):
      "kernel has boot protocol \(version >> 8).\(version & 0xff); 2.12 or later is needed"
    case .not64Bit(let flags):
      "kernel has no 64-bit entry point (XLF_KERNEL_64 is clear in xloadflags \(hex(flags)))"
    case .notLoadedHigh:
      "kernel is a zImage (LOADED_HIGH is clear); a bzImage is needed"
    case .kernelAlignmentInvalid(let alignment):
      "kernel's kernel_alignment \(hex(alignment)) is not a power of two"
    case .elfUnsupported(let elfClass, let byteOrder, let machine, let type):
      "kernel is an ELF file of class \(elfClass), byte order \(byteOrder), machine \(machine), type \(type); "
        + "a little-endian x86 executable is needed"
    case .programHeaderSizeInvalid(let size):
      "kernel's ELF program headers are \(size) bytes each, which its class does not allow"
    case .noSegments:
      "kernel has no ELF segment to load"
    case .segmentInvalid(let index, let address, let fileSize, let memorySize):
      "kernel's ELF segment \(index) is invalid: \(hex(fileSize)) bytes of file for "
        + "\(hex(memorySize)) bytes of memory at \(hex(address))"
    case .segmentsOverlap(let index, let address, let memorySize):
      "kernel's ELF segment \(index) (\(hex(memorySize)) bytes at \(hex(address))) overlaps another one"
    case .notesTooLarge(let size):
      "kernel's ELF notes are \(size) bytes, more than any kernel has"
    case .noteInvalid(let offset):
      "kernel's ELF note at byte \(offset) of its segment runs past the segment's end"
    case .noEntryNote:
      "kernel is an ELF file without a PVH entry note and without a Multiboot header"
    case .multibootFlagsUnsupported(let flags):
      "kernel's Multiboot header requires features that are not offered (flags \(hex(flags)))"
    case .multibootAddressesInvalid(let header, let load, let loadEnd, let bssEnd):
      "kernel's Multiboot addresses are inconsistent: header \(hex(header)), load \(hex(load)), "
        + "load end \(hex(loadEnd)), bss end \(hex(bssEnd))"
    case .notELF:
      "kernel's Multiboot header gives no addresses, and the kernel is not an ELF file"
    case .entryOutsideKernel(let entry):
      "kernel's entry point \(hex(entry)) is not in what it loads"
    case .kernelDoesNotFit(let address, let size, let memoryEnd):
      "kernel needs \(size) bytes of RAM at \(hex(address)), which the guest's RAM of \(memoryEnd) bytes below 4 GiB "
        + "does not have"
    case .commandLineTooLong(let length, let limit):
      "command line is \(length) bytes long; the kernel takes at most \(limit)"
    case .initialRAMDiskUnrecognised(let size):
      "initrd is not an archive or file system that Linux can unpack (\(size) bytes)"
    case .initialRAMDiskDoesNotFit(let size, let available):
      "initrd is \(size) bytes; the largest room that the kernel leaves for it in RAM is \(available) bytes"
    case .noRoom(let content, let size):
      "kernel leaves no room below 1 MiB for its \(content.rawValue) of \(size) bytes"
    case .notMemory(let address, let size):
      "guest memory has no RAM for \(size) bytes at \(hex(address))"
    }
  }

  private static func describe(_ error: ImageSourceError) -> String {
    switch error {
    case .pastEnd(let offset, let count): "it ends before byte \(offset) + \(count)"
    case .notMemory(let address, let count): "no RAM for \(count) bytes at \(hex(address))"
    case .host(let errno): "errno \(errno)"
    }
  }
}

private func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
