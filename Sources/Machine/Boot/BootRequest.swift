import Hardware

/// A file from which the guest is started.
public struct BootFile {
  public var image: any ImageSource
  /// The name that the user gave. Multiboot passes names to the kernel.
  public var name: String

  public init(image: any ImageSource, name: String) {
    self.image = image
    self.name = name
  }
}

/// A kernel to start, and the memory layout of the machine.
public struct BootRequest {
  public var kernel: BootFile
  /// The initial RAM disk; for Multiboot, the module.
  public var initialRAMDisk: BootFile?
  public var commandLine: String
  public var layout: GuestMemoryLayout
  /// The address of the ACPI root pointer (RSDP); nil without ACPI tables.
  public var rootPointer: UInt64?

  public init(
    kernel: BootFile, initialRAMDisk: BootFile? = nil, commandLine: String = "", layout: GuestMemoryLayout,
    rootPointer: UInt64? = nil
  ) {
    self.kernel = kernel
    self.initialRAMDisk = initialRAMDisk
    self.commandLine = commandLine
    self.layout = layout
    self.rootPointer = rootPointer
  }

  /// Loads the kernel and its data into guest memory.
  ///
  /// The kernel's content determines the format. The order of the checks is: Linux bzImage, Multiboot 1, ELF with a PVH
  /// entry note. This writes nothing before it has checked that everything is valid and fits. Only a failed read of the
  /// file can leave memory partly written.
  public func load(into memory: any PhysicalMemory) throws(BootError) -> BootEntry {
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
