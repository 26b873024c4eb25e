import Hardware

/// Loads Linux for its 64-bit entry point (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"), with `boot_params`
/// (arch/x86/include/uapi/asm/bootparam.h), page tables and a descriptor table.
extension BootLoading {
  mutating func load(_ linux: LinuxImage) throws(BootError) -> BootEntry {
    let commandLine = Array(request.commandLine.utf8)
    guard UInt64(commandLine.count) <= linux.commandLineLimit else {
      throw .commandLineTooLong(length: commandLine.count, limit: linux.commandLineLimit)
    }
    if let file = request.initialRAMDisk { try InitialRAMDisk.check(file.image) }

    let kernel = try claimKernel(linux)
    let disk = try claimInitialRAMDisk(below: min(linux.initialRAMDiskLast + 1, request.layout.lowRAMEnd))
    let tables = try claim(.pageTables, size: IdentityPageTables.size, alignment: 4096)
    let descriptors = try claim(.descriptorTable, size: Self.descriptorTable.count)
    let parameters = try claim(.bootParameters, size: BootParameters.size, alignment: 4096)
    let commandLineAddress = try claim(.commandLine, size: commandLine.count + 1)

    var bootParameters = BootParameters(setupHeader: linux.setupHeader)
    bootParameters.setCommandLine(at: commandLineAddress)
    if let disk { bootParameters.setInitialRAMDisk(disk) }
    if let rootPointer = request.rootPointer { bootParameters.setRootPointer(rootPointer) }
    bootParameters.setMemoryMap(request.layout.regions)

    try load(kernelReader, at: linux.kernelOffset, count: linux.kernelSize, to: kernel)
    try loadInitialRAMDisk(to: disk)
    try write(IdentityPageTables.make(at: tables), to: tables)
    try write(Self.descriptorTable, to: descriptors)
    try write(bootParameters.bytes, to: parameters)
    try write(commandLine + [0], to: commandLineAddress)

    return .longMode(
      LongModeEntry(
        instructionPointer: kernel + LinuxImage.entryOffset, bootParameters: parameters, pageTableRoot: tables,
        descriptorTableBase: descriptors, descriptorTableLimit: UInt16(Self.descriptorTable.count - 1)))
  }

  private mutating func claimKernel(_ linux: LinuxImage) throws(BootError) -> UInt64 {
    var refusal: BootError?
    for address in linux.addresses {
      do throws(BootError) {
        try claimKernel(address, size: linux.initialSize)
        return address
      } catch { refusal = refusal ?? error }
    }
    throw refusal
      ?? .kernelDoesNotFit(
        address: linux.preferredAddress, size: linux.initialSize, memoryEnd: request.layout.lowRAMEnd)
  }

  /// Null, unused, `__BOOT_CS` (selector 0x10), `__BOOT_DS` (0x18).
  private static let descriptorTable: [UInt8] = {
    var bytes: [UInt8] = []
    // Base 0, limit 0xfffff pages, present. The accessed flag is set, so that the CPU does not need to write to the
    // table.
    for descriptor: UInt64 in [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
      bytes.append(littleEndian: descriptor)
    }
    return bytes
  }()
}

/// `struct boot_params`, the "zero page".
struct BootParameters {
  static let size = 4096
  private(set) var bytes = [UInt8](repeating: 0, count: size)

  init(setupHeader: [UInt8]) {
    bytes.replaceSubrange(LinuxImage.headerOffset..<LinuxImage.headerOffset + setupHeader.count, with: setupHeader)
    // type_of_loader: a loader without a registered number.
    bytes[0x210] = 0xff
    // setup_data: none.
    bytes.store(UInt64(0), at: 0x250)
    setInitialRAMDisk(0..<0)
  }

  mutating func setCommandLine(at address: UInt64) {
    // cmd_line_ptr, ext_cmd_line_ptr.
    bytes.store(UInt32(truncatingIfNeeded: address), at: 0x228)
    bytes.store(UInt32(truncatingIfNeeded: address >> 32), at: 0x0c8)
  }

  mutating func setInitialRAMDisk(_ range: Range<UInt64>) {
    // ramdisk_image, ramdisk_size, ext_ramdisk_image, ext_ramdisk_size (the upper halves).
    bytes.store(UInt32(truncatingIfNeeded: range.lowerBound), at: 0x218)
    bytes.store(UInt32(truncatingIfNeeded: range.count), at: 0x21c)
    bytes.store(UInt32(truncatingIfNeeded: range.lowerBound >> 32), at: 0x0c0)
    bytes.store(UInt32(truncatingIfNeeded: range.count >> 32), at: 0x0c4)
  }

  mutating func setRootPointer(_ address: UInt64) {
    // acpi_rsdp_addr.
    bytes.store(address, at: 0x070)
  }

  /// - Parameter regions: at most 128, the size of the table. Further regions are ignored.
  mutating func setMemoryMap(_ regions: [GuestMemoryLayout.Region]) {
    let regions = regions.prefix(128)
    // e820_entries, e820_table.
    bytes[0x1e8] = UInt8(regions.count)
    for (index, region) in regions.enumerated() {
      let offset = 0x2d0 + 20 * index
      bytes.store(region.range.lowerBound, at: offset)
      bytes.store(region.range.upperBound - region.range.lowerBound, at: offset + 8)
      bytes.store(region.type.rawValue, at: offset + 16)
    }
  }
}

/// Page tables that map the first 4 GiB to themselves (Intel SDM, volume 3, 4.5). They use 2 MiB pages, because some
/// CPUs and some emulators do not support 1 GiB pages.
enum IdentityPageTables {
  /// PML4, page-directory-pointer table, four page directories.
  static let size = 6 * pageSize
  private static let pageSize = 4096

  /// Present, writable, accessed. With the accessed flag set, the CPU does not need to write to the tables.
  private static let table: UInt64 = 1 << 0 | 1 << 1 | 1 << 5
  /// The flags of a page: those of a table, dirty, and page size (2 MiB).
  private static let page: UInt64 = table | 1 << 6 | 1 << 7

  /// - Parameter address: the guest physical address of the tables, page aligned. Their entries contain it.
  static func make(at address: UInt64) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(size)
    func appendTable(_ entries: [UInt64]) {
      for entry in entries { bytes.append(littleEndian: entry) }
      bytes.append(contentsOf: repeatElement(0, count: pageSize - 8 * entries.count))
    }
    appendTable([address + UInt64(pageSize) | table])
    appendTable((0..<4).map { address + UInt64((2 + $0) * pageSize) | table })
    for directory: UInt64 in 0..<4 {
      appendTable((0..<512).map { directory << 30 | $0 << 21 | page })
    }
    return bytes
  }
}
