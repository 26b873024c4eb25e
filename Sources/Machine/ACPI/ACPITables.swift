import Hardware

/// The ACPI tables of a machine (ACPI 6.5, chapter 5), built once as bytes for guest memory.
///
/// The root pointer (RSDP) points to the 64-bit table of tables (XSDT). There is no 32-bit RSDT of ACPI 1.0.
struct ACPITables: Hashable, Sendable {
  /// The guest physical address of the bytes.
  let address: UInt64
  let bytes: [UInt8]
  /// Guest physical address of the root pointer, for boot protocols that pass it to the kernel.
  var rootPointer: UInt64 { address }
  /// The tables, in the order of their addresses.
  let tables: [Table]

  struct Table: Hashable, Sendable {
    let signature: String
    /// The table's range within `bytes`.
    let range: Range<Int>
  }

  /// Returns the bytes of the table with a signature.
  func table(_ signature: String) -> [UInt8]? {
    tables.first { $0.signature == signature }.map { Array(bytes[$0.range]) }
  }

  /// - Throws: if the tables do not fit their range in memory, or a value does not fit its field.
  static func build(_ configuration: ACPIConfiguration) throws(ACPIError) -> ACPITables {
    var layout = Layout(base: ACPIPlatform.tablesRange.lowerBound)
    // The root pointer comes first, where an operating system's search starts. It is filled in at the end.
    let root = layout.place("RSD PTR ", [UInt8](repeating: 0, count: RootPointer.size), alignment: 16)

    let control = layout.place("FACS", FirmwareControl.table(), alignment: 64)
    let differentiated = layout.place("DSDT", DSDT.bytes)
    var descriptions = [
      layout.place("FACP", FixedDescription.table(firmwareControl: control, differentiated: differentiated)),
      layout.place("APIC", InterruptDescription.table(configuration)),
      layout.place("MCFG", ConfigurationSpaceDescription.table(lastBus: configuration.lastBus)),
      layout.place("SSDT", DynamicValues.table(configuration)),
    ]
    if let remapping = configuration.remapping {
      descriptions.append(layout.place("DMAR", try RemappingDescription.table(remapping)))
    }
    let extended = layout.place("XSDT", ExtendedRoot.table(descriptions))
    layout.replace(at: root, with: RootPointer.structure(extendedRoot: extended))

    let size = UInt64(layout.bytes.count)
    let room = ACPIPlatform.tablesRange.upperBound - ACPIPlatform.tablesRange.lowerBound
    guard size <= room else { throw .tooLarge(size: size, room: room) }
    return ACPITables(address: layout.base, bytes: layout.bytes, tables: layout.tables)
  }

  /// Places tables one after the other.
  private struct Layout {
    let base: UInt64
    private(set) var bytes: [UInt8] = []
    private(set) var tables: [Table] = []

    init(base: UInt64) { self.base = base }

    /// - Returns: the guest physical address of the table.
    mutating func place(_ signature: String, _ table: [UInt8], alignment: Int = 16) -> UInt64 {
      let padding = -bytes.count & (alignment - 1)
      bytes.append(contentsOf: repeatElement(0, count: padding))
      let start = bytes.count
      bytes += table
      tables.append(Table(signature: signature, range: start..<bytes.count))
      return base + UInt64(start)
    }

    mutating func replace(at address: UInt64, with table: [UInt8]) {
      let start = Int(address - base)
      bytes.replaceSubrange(start..<start + table.count, with: table)
    }
  }
}

/// The reason why the tables cannot be built.
public enum ACPIError: Error, Hashable, Sendable {
  /// Sizes in bytes.
  case tooLarge(size: UInt64, room: UInt64)
  /// A structure's 8-bit or 16-bit length field cannot hold its size in bytes.
  case structureTooLong(length: Int)
  case hostAddressWidthInvalid(Int)
}
