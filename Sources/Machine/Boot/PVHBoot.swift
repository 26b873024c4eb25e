import Hardware

/// An ELF kernel with a PVH entry point: Xen's direct boot protocol, CONFIG_PVH in Linux (xen/include/public/elfnote.h,
/// xen/include/public/arch-x86/hvm/start_info.h).
struct PVHImage {
  let elf: ELFImage
  /// Physical address of the 32-bit entry point.
  let entry: UInt32

  /// XEN_ELFNOTE_PHYS32_ENTRY.
  private static let entryNote: UInt32 = 18

  init(elf: ELFImage) throws(BootError) {
    self.elf = elf
    guard let content = try elf.note(owner: "Xen", type: Self.entryNote), content.count == 4 || content.count == 8
    else { throw .noEntryNote }
    let address = content.count == 8 ? content.load(UInt64.self, at: 0) : UInt64(content.load(UInt32.self, at: 0))
    guard let entry = UInt32(exactly: address), elf.loads(address) else { throw .entryOutsideKernel(entry: address) }
    self.entry = entry
  }
}

extension BootLoading {
  mutating func load(_ image: PVHImage) throws(BootError) -> BootEntry {
    if let file = request.initialRAMDisk { try InitialRAMDisk.check(file.image) }
    let commandLine = Array(request.commandLine.utf8) + [0]
    let regions = request.layout.regions

    try claim(image.elf.segments)
    let disk = try claimInitialRAMDisk(below: request.layout.lowRAMEnd)
    let start = try claim(.startInformation, size: 56)
    let commandLineAddress = try claim(.commandLine, size: commandLine.count)
    let map = try claim(.memoryMap, size: 24 * regions.count)
    let modules = disk == nil ? 0 : try claim(.moduleList, size: 32)

    // hvm_start_info, version 1.
    let flags: UInt32 = 0
    let moduleCount: UInt32 = disk == nil ? 0 : 1
    let information = [UInt8](
      littleEndian: UInt32(0x336e_c578), UInt32(1), flags, moduleCount, modules, commandLineAddress,
      request.rootPointer ?? 0, map, UInt32(regions.count), UInt32(0))

    var mapBytes: [UInt8] = []
    for region in regions {
      let size = region.range.upperBound - region.range.lowerBound
      mapBytes.append(littleEndian: region.range.lowerBound, size, region.type.rawValue, UInt32(0))
    }

    try load(image.elf.segments)
    try loadInitialRAMDisk(to: disk)
    try write(information, to: start)
    try write(commandLine, to: commandLineAddress)
    try write(mapBytes, to: map)
    if let disk {
      // hvm_modlist_entry: address, size, command line (none), reserved.
      let module = [UInt8](littleEndian: disk.lowerBound, UInt64(disk.count), UInt64(0), UInt64(0))
      try write(module, to: modules)
    }
    return .protectedMode(
      ProtectedModeEntry(
        instructionPointer: image.entry, accumulator: 0, startInformation: UInt32(truncatingIfNeeded: start)))
  }
}
