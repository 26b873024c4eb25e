/// The reason why a kernel cannot be started: an error in a file, or too little memory.
public enum BootError: Error, Hashable, Sendable {
  /// The file with the error.
  public enum File: Hashable, Sendable {
    case kernel
    case initialRAMDisk
  }

  /// A part of a file.
  public enum Part: Hashable, Sendable {
    case setupHeader, protectedModeKernel
    case elfHeader, programHeaders, segment, notes
    case multibootHeader, loadRange
  }

  /// The data for which there is no room.
  public enum Content: Hashable, Sendable {
    case pageTables, descriptorTable, bootParameters, commandLine, startInformation, moduleList, memoryMap
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
  /// The address range is RAM in the layout, but the guest memory does not contain it.
  case notMemory(address: UInt64, size: UInt64)
}
