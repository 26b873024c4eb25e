import Glibc
import Linux

/// The contents of RAM at each start of the guest: the ACPI tables, the kernel and its initrd.
struct StartImage {
  private let boot: MachineConfiguration.BootSource
  private let kernel: ImageFile
  private let initialRAMDisk: ImageFile?
  private let tables: ACPITables

  /// Opens the files and builds the tables.
  init(
    _ boot: MachineConfiguration.BootSource, for configuration: MachineConfiguration, units: [UnitPlacement],
    layout: BoardLayout, memory: GuestMemory
  ) throws(StartError) {
    self.boot = boot
    func open(_ path: String, _ option: String) throws(StartError) -> ImageFile {
      try mapError(try ImageFile(opening: path, memory: memory)) { StartError.file(option: option, $0) }
    }
    kernel = try open(boot.kernel, "-kernel")
    initialRAMDisk = try boot.initrd.map { (path) throws(StartError) in try open(path, "-initrd") }
    let placement = try mapError(try configuration.devicePlacement(), StartError.configuration)
    let content = ACPIConfiguration(
      localAPICs: (0..<UInt32(configuration.processors.count)).map { $0 }, highWindow: layout.memory64Window,
      lastBus: UInt8(clamping: configuration.lastBus), hotplugWay: configuration.hotplugWay,
      hotplugSlots: configuration.hotplugSlots(placement), remapping: units.isEmpty ? nil : DMARemapping(units))
    tables = try mapError(try ACPITables.build(content), StartError.tables)
  }

  /// Writes the contents into RAM.
  /// - Returns: the state in which the first CPU starts.
  func load(into memory: GuestMemory, layout: BoardLayout) throws(StartError) -> BootEntry {
    guard memory.write(tables.bytes, to: tables.address) else {
      throw .system(SystemError("ACPI tables", "RAM at 0x\(String(tables.address, radix: 16))", code: EFAULT))
    }
    let request = BootRequest(
      kernel: BootFile(image: kernel, name: boot.kernel),
      initialRAMDisk: initialRAMDisk.map { BootFile(image: $0, name: boot.initrd ?? "") },
      commandLine: boot.commandLine, layout: layout.memoryLayout, rootPointer: tables.rootPointer)
    return try mapError(try request.load(into: memory), StartError.boot)
  }
}
