import Hardware

/// A Linux bzImage, described by its setup header (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
struct LinuxImage {
  /// The bytes of the header in the file from `headerOffset` on. They are copied into `boot_params`.
  let setupHeader: [UInt8]
  /// The offset of the protected-mode kernel in the file.
  let kernelOffset: UInt64
  let kernelSize: UInt64
  /// relocatable_kernel.
  let relocatable: Bool
  /// kernel_alignment, in bytes: a power of two if the kernel is relocatable.
  let kernelAlignment: UInt64
  /// min_alignment, in bytes.
  let minimumAlignment: UInt64
  /// pref_address.
  let preferredAddress: UInt64
  /// init_size: bytes of memory that the kernel needs, from the address where it runs, before it reads the memory map.
  let initialSize: UInt64
  /// cmdline_size, in bytes without the terminating zero.
  let commandLineLimit: UInt64
  /// initrd_addr_max: the highest address that a byte of the initrd may have.
  let initialRAMDiskLast: UInt64

  /// The offset of the header, both in the file and in `boot_params`.
  static let headerOffset = 0x1f1
  /// The end of the room for the header in `boot_params`.
  private static let headerLimit = 0x290
  /// The end of the fields of protocol 2.12. The last of them is handover_offset.
  private static let headerNeeded = 0x268
  private static let sectorSize: UInt64 = 512
  /// The offset of the 64-bit entry point in the protected-mode kernel.
  static let entryOffset: UInt64 = 0x200

  /// - Returns: nil if the file is not a bzImage.
  init?(head: [UInt8], size: UInt64) throws(BootError) {
    let signature = Array("HdrS".utf8)
    guard head.count >= 0x206, head.load(UInt16.self, at: 0x1fe) == 0xaa55, Array(head[0x202..<0x206]) == signature
    else { return nil }

    guard head.count >= 0x208 else { throw .truncated(.kernel, .setupHeader, end: 0x208, size: size) }
    let version = head.load(UInt16.self, at: 0x206)
    guard version >= 0x20c else { throw .protocolTooOld(version: version) }
    // The header starts with a jump over itself. The jump's operand, at 0x201, is the header's length after 0x202.
    let headerEnd = 0x202 + Int(head[0x201])
    guard headerEnd >= Self.headerNeeded else { throw .setupHeaderTooShort(end: headerEnd) }
    guard head.count >= headerEnd else {
      throw .truncated(.kernel, .setupHeader, end: UInt64(headerEnd), size: size)
    }
    setupHeader = Array(head[Self.headerOffset..<min(headerEnd, Self.headerLimit)])

    let loadFlags = head[0x211]
    guard loadFlags & 1 != 0 else { throw .notLoadedHigh }
    let extendedLoadFlags = head.load(UInt16.self, at: 0x236)
    guard extendedLoadFlags & 1 != 0 else { throw .not64Bit(extendedLoadFlags: extendedLoadFlags) }

    // setup_sects is the number of setup sectors after the boot sector. Zero means four.
    let setupSectors = head[0x1f1] == 0 ? 4 : UInt64(head[0x1f1])
    kernelOffset = (setupSectors + 1) * Self.sectorSize
    // syssize, in units of 16 bytes. A signature may follow it in the file.
    kernelSize = UInt64(head.load(UInt32.self, at: 0x1f4)) * 16
    guard kernelSize > Self.entryOffset, kernelOffset + kernelSize <= size else {
      throw .truncated(
        .kernel, .protectedModeKernel, end: kernelOffset + max(kernelSize, Self.entryOffset + 1), size: size)
    }

    relocatable = head[0x234] != 0
    let alignment = head.load(UInt32.self, at: 0x230)
    if relocatable, alignment.nonzeroBitCount != 1 { throw .kernelAlignmentInvalid(alignment) }
    kernelAlignment = UInt64(alignment)
    minimumAlignment = head[0x235] < 32 ? 1 << UInt64(head[0x235]) : kernelAlignment
    preferredAddress = head.load(UInt64.self, at: 0x258)
    initialSize = max(UInt64(head.load(UInt32.self, at: 0x260)), kernelSize)
    commandLineLimit = UInt64(head.load(UInt32.self, at: 0x238))
    initialRAMDiskLast = UInt64(head.load(UInt32.self, at: 0x22c))
  }

  /// The addresses at which the kernel may be loaded, best first.
  ///
  /// A relocatable kernel runs where it is loaded, aligned upwards, but never below its preferred address. If it is
  /// loaded below that, it moves itself there, and needs `initialSize` bytes there anyway (boot.rst, "init_size"). So,
  /// if there is no room, a lower address does not help, but a smaller alignment may.
  var addresses: [UInt64] {
    guard relocatable else { return [preferredAddress] }
    let lowest = max(preferredAddress, GuestMemoryLayout.firstMiB)
    return [kernelAlignment, minimumAlignment].compactMap { alignment in
      let (padded, overflow) = lowest.addingReportingOverflow(alignment - 1)
      return overflow ? nil : padded & ~(alignment - 1)
    }
  }
}
