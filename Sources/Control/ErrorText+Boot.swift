import Machine

/// Texts for kernels and initrds that cannot be started: the problem in the file, and what Nestling needs.
extension ErrorText {
  static func text(for error: BootError) -> String {
    switch error {
    case .unknownFormat(let size):
      "kernel is neither a Linux bzImage, nor Multiboot, nor ELF with a PVH entry (\(size) bytes)"
    case .readFailed(let file, let error): "\(noun(file)) cannot be read: \(text(for: error))"
    case .truncated(let file, let part, let end?, let size):
      "\(noun(file)) is truncated: its \(noun(part)) ends at byte \(end), but the file ends at byte \(size)"
    case .truncated(let file, let part, nil, let size):
      "\(noun(file)) is damaged: the end of its \(noun(part)) does not fit in 64 bits (the file has \(size) bytes)"
    case .setupHeaderTooShort(let end):
      "kernel's setup header ends at \(NumberFormat.hexadecimal(end)), before the fields of boot protocol 2.12"
    case .protocolTooOld(let version):
      "kernel has boot protocol \(version >> 8).\(version & 0xff); 2.12 or later is needed"
    case .not64Bit(let flags):
      "kernel has no 64-bit entry point (XLF_KERNEL_64 is clear in xloadflags \(NumberFormat.hexadecimal(flags)))"
    case .notLoadedHigh: "kernel is a zImage (LOADED_HIGH is clear); a bzImage is needed"
    case .kernelAlignmentInvalid(let alignment):
      "kernel's kernel_alignment \(NumberFormat.hexadecimal(alignment)) is not a power of two"
    case .elfUnsupported(let elfClass, let byteOrder, let machine, let type):
      "kernel is an ELF file of class \(elfClass), byte order \(byteOrder), machine \(machine), type \(type); "
        + "a little-endian x86 executable is needed"
    case .programHeaderSizeInvalid(let size):
      "kernel's ELF program headers have \(size) bytes each, which its ELF class does not allow"
    case .noSegments: "kernel has no ELF segment to load"
    case .segmentInvalid(let index, let address, let fileSize, let memorySize):
      "kernel's ELF segment \(index) is invalid: \(NumberFormat.hexadecimal(fileSize)) bytes of file for "
        + "\(NumberFormat.hexadecimal(memorySize)) bytes of memory at \(NumberFormat.hexadecimal(address))"
    case .segmentsOverlap(let index, let address, let memorySize):
      "kernel's ELF segment \(index) (\(NumberFormat.hexadecimal(memorySize)) bytes at \(NumberFormat.hexadecimal(address))) overlaps another one"
    case .notesTooLarge(let size): "kernel's ELF notes have \(size) bytes; at most 1 MiB is supported"
    case .noteInvalid(let offset):
      "kernel's ELF note at byte \(offset) of its segment extends beyond the end of the segment"
    case .noEntryNote: "kernel is an ELF file without a PVH entry note and without a Multiboot header"
    case .multibootFlagsUnsupported(let flags):
      "kernel's Multiboot header requires features that are not supported (flags \(NumberFormat.hexadecimal(flags)))"
    case .multibootAddressesInvalid(let header, let load, let loadEnd, let bssEnd):
      "kernel's Multiboot addresses are inconsistent: header \(NumberFormat.hexadecimal(header)), load \(NumberFormat.hexadecimal(load)), "
        + "load end \(NumberFormat.hexadecimal(loadEnd)), bss end \(NumberFormat.hexadecimal(bssEnd))"
    case .notELF: "kernel's Multiboot header has no addresses, and the kernel is not an ELF file"
    case .entryOutsideKernel(let entry):
      "kernel's entry point \(NumberFormat.hexadecimal(entry)) is outside its segments"
    case .kernelDoesNotFit(let address, let size, let memoryEnd):
      "kernel needs \(size) bytes of RAM at \(NumberFormat.hexadecimal(address)), but the guest has only \(memoryEnd) bytes below 4 GiB"
    case .commandLineTooLong(let length, let limit):
      "command line is \(length) bytes long; the kernel takes at most \(limit)"
    case .initialRAMDiskUnrecognised(let size):
      "initrd is not an archive or file system that Linux can unpack (\(size) bytes)"
    case .initialRAMDiskDoesNotFit(let size, let available):
      "initrd has \(size) bytes, but only \(available) contiguous bytes of RAM are free "
        + "where the kernel accepts an initrd"
    case .noRoom(let content, let size): "kernel leaves no room below 1 MiB for its \(noun(content)) of \(size) bytes"
    case .notMemory(let address, let size): "guest has no RAM for \(size) bytes at \(NumberFormat.hexadecimal(address))"
    }
  }

  private static func text(for error: ImageSourceError) -> String {
    switch error {
    case .pastEnd(let offset, let count): "the file does not have \(count) bytes at offset \(offset)"
    case .notMemory(let address, let count): "no RAM for \(count) bytes at \(NumberFormat.hexadecimal(address))"
    case .host(let error): text(for: error)
    }
  }

  private static func noun(_ file: BootError.File) -> String {
    switch file {
    case .kernel: "kernel"
    case .initialRAMDisk: "initrd"
    }
  }

  private static func noun(_ part: BootError.Part) -> String {
    switch part {
    case .setupHeader: "setup header"
    case .protectedModeKernel: "protected-mode kernel"
    case .elfHeader: "ELF header"
    case .programHeaders: "ELF program headers"
    case .segment: "ELF segment"
    case .notes: "ELF notes"
    case .multibootHeader: "Multiboot header"
    case .loadRange: "Multiboot load range"
    }
  }

  private static func noun(_ content: BootError.Content) -> String {
    switch content {
    case .pageTables: "page tables"
    case .descriptorTable: "descriptor table"
    case .bootParameters: "boot parameters"
    case .commandLine: "command line"
    case .startInformation: "start information"
    case .moduleList: "module list"
    case .memoryMap: "memory map"
    }
  }
}
