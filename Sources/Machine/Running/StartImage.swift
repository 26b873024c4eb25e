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
    do {
      kernel = try ImageFile(opening: boot.kernel, memory: memory)
    } catch {
      throw .file(option: "-kernel", error)
    }
    do {
      initialRAMDisk = try boot.initrd.map { path throws(SystemError) in try ImageFile(opening: path, memory: memory) }
    } catch {
      throw .file(option: "-initrd", error)
    }
    let slots: [HotplugSlot]
    do {
      slots = configuration.hotplugSlots(try configuration.devicePlacement())
    } catch {
      throw .configuration(error)
    }
    do {
      tables = try ACPITables.build(
        ACPIConfiguration(
          localAPICs: (0..<UInt32(configuration.processors.count)).map { $0 }, highWindow: layout.memory64Window,
          lastBus: UInt8(clamping: configuration.lastBus), hotplugWay: configuration.hotplugWay, hotplugSlots: slots,
          remapping: units.isEmpty ? nil : DMARemapping(units)))
    } catch {
      throw .tables(error)
    }
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
    do {
      return try request.load(into: memory)
    } catch {
      throw .boot(error)
    }
  }
}
