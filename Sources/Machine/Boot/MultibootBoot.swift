import Hardware

/// Loads a Multiboot kernel with its boot information, and sets its machine state (Multiboot Specification 0.6.96,
/// sections 3.2 and 3.3).
extension BootLoading {
  mutating func load(_ image: MultibootImage) throws(BootError) -> BootEntry {
    // The kernel's name comes first, as with GRUB legacy and QEMU. Test kernels rely on it.
    let commandLine = Array("\(request.kernel.name) \(request.commandLine)".utf8) + [0]
    let map = Self.memoryMap(request.layout.regions)
    let loaderName = Array("Nestling".utf8) + [0]

    try claim(image.segments)
    let disk = try claimInitialRAMDisk(below: request.layout.lowRAMEnd)
    let start = try claim(.startInformation, size: 116)
    let commandLineAddress = try claim(.commandLine, size: commandLine.count)
    let mapAddress = try claim(.memoryMap, size: map.count)
    let loaderNameAddress = try claim(.startInformation, size: loaderName.count)

    var information = [UInt8](repeating: 0, count: 116)
    func store(_ value: UInt64, at offset: Int) {
      // All addresses and sizes are below 4 GiB.
      information.store(UInt32(truncatingIfNeeded: value), at: offset)
    }
    // Flags: memory sizes, command line, memory map, loader's name.
    var flags: UInt64 = 1 << 0 | 1 << 2 | 1 << 6 | 1 << 9
    // mem_lower and mem_upper: KiB of RAM from 0, and KiB from 1 MiB to the first hole.
    let firstMiB = GuestMemoryLayout.firstMiB
    store(min(request.layout.lowRAMEnd, GuestMemoryLayout.conventionalEnd) >> 10, at: 4)
    store((max(request.layout.lowRAMEnd, firstMiB) - firstMiB) >> 10, at: 8)
    store(commandLineAddress, at: 16)
    store(UInt64(map.count), at: 44)
    store(mapAddress, at: 48)
    store(loaderNameAddress, at: 64)

    if let disk, let file = request.initialRAMDisk {
      let name = Array(file.name.utf8) + [0]
      let nameAddress = try claim(.commandLine, size: name.count)
      let modules = try claim(.moduleList, size: 16)
      // mod_start, mod_end, string, reserved.
      var module: [UInt8] = []
      for field in [disk.lowerBound, disk.upperBound, nameAddress, 0] {
        module.append(littleEndian: UInt32(truncatingIfNeeded: field))
      }
      try write(module, to: modules)
      try write(name, to: nameAddress)
      flags |= 1 << 3
      store(1, at: 20)
      store(modules, at: 24)
    }
    store(flags, at: 0)

    try load(image.segments)
    try loadInitialRAMDisk(to: disk)
    try write(information, to: start)
    try write(commandLine, to: commandLineAddress)
    try write(map, to: mapAddress)
    try write(loaderName, to: loaderNameAddress)
    return .protectedMode(
      ProtectedModeEntry(
        instructionPointer: image.entry, accumulator: 0x2bad_b002, startInformation: UInt32(truncatingIfNeeded: start)))
  }

  /// Makes the memory map: entries of 20 bytes, each after its size, which does not include the size field itself.
  private static func memoryMap(_ regions: [GuestMemoryLayout.Region]) -> [UInt8] {
    var bytes: [UInt8] = []
    for region in regions {
      let size = region.range.upperBound - region.range.lowerBound
      bytes.append(littleEndian: UInt32(20), region.range.lowerBound, size, region.type.rawValue)
    }
    return bytes
  }
}
