import Hardware

/// A file from which the guest is started.
struct BootFile {
  var image: any ImageSource
  /// The name that the user gave. Multiboot passes names to the kernel.
  var name: String
}

/// A kernel to start, and the memory layout of the machine.
struct BootRequest {
  var kernel: BootFile
  /// The initial RAM disk; for Multiboot, the module.
  var initialRAMDisk: BootFile?
  var commandLine = ""
  var layout: GuestMemoryLayout
  /// The address of the ACPI root pointer (RSDP); nil without ACPI tables.
  var rootPointer: UInt64?

  /// Loads the kernel and its data into guest memory.
  ///
  /// The kernel's content determines the format. The order of the checks is: Linux bzImage, Multiboot 1, ELF with a PVH
  /// entry note. This writes nothing before it has checked that everything is valid and fits. Only a failed read of the
  /// file can leave memory partly written.
  func load(into memory: any PhysicalMemory) throws(BootError) -> BootEntry {
    let reader = ImageReader(kernel.image, is: .kernel)
    let head = try reader.readStart(atMost: MultibootHeader.searchLength)
    var loading = BootLoading(request: self, memory: memory)
    if let linux = try LinuxImage(head: head, size: kernel.image.size) {
      return try loading.load(linux)
    }
    if let header = try MultibootHeader(searching: head) {
      return try loading.load(MultibootImage(header: header, head: head, reader: reader))
    }
    if ELFImage.recognises(head) {
      return try loading.load(PVHImage(elf: ELFImage(reader)))
    }
    throw .unknownFormat(size: kernel.image.size)
  }
}
