import Linux

extension MemoryRegion {
  /// Returns the regions of a guest's RAM; nil if no other process can map it.
  public static func regions(of memory: GuestMemory) -> [MemoryRegion]? {
    guard let descriptor = memory.sharedDescriptor else { return nil }
    let file = SharedDescriptor(descriptor, owner: memory)
    return memory.regions.map { region in
      MemoryRegion(address: region.address, size: region.size, fileOffset: region.fileOffset, file: file)
    }
  }
}
