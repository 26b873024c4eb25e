import Hardware

/// A file that the guest is started from.
public struct BootFile {
  public var image: any ImageSource
  /// As the user gave it: Multiboot hands names to the kernel.
  public var name: String

  public init(image: any ImageSource, name: String) {
    self.image = image
    self.name = name
  }
}

/// What to start, and the memory that there is to start it in.
public struct BootRequest {
  public var kernel: BootFile
  /// The initial RAM disk; for Multiboot, the module.
  public var initialRAMDisk: BootFile?
  public var commandLine: String
  public var layout: GuestMemoryLayout
  /// Where the ACPI root pointer (RSDP) is; nil without ACPI tables.
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

  /// Puts the kernel and all that it is handed into guest memory.
  ///
  /// The format is found out from the kernel's content: Linux bzImage, Multiboot 1, ELF with a PVH
  /// entry note, in this order. Nothing is written before the whole of it is known to be sound and to
  /// fit; only a failing read of the file can leave memory half written.
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
