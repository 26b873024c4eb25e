import Hardware

/// The items that fw_cfg offers to the guest: byte arrays with 16-bit keys (QEMU docs/specs/fw_cfg.rst; the keys below
/// 0x20 are from include/standard-headers/linux/qemu_fw_cfg.h). Numbers are little-endian, except in the big-endian
/// file directory.
public struct FirmwareConfigurationItems: Sendable {
  /// The reason why a file cannot be added.
  public enum FileError: Error, Hashable, Sendable {
    /// The name is empty, longer than 55 bytes, or not printable ASCII.
    case unusableName(String)
    case duplicateName(String)
    /// The file's size does not fit into the directory's 32 bits.
    case tooLarge(String)
    /// All keys are in use.
    case tooMany
  }

  private enum Key {
    static let signature: UInt16 = 0x00
    static let identification: UInt16 = 0x01
    static let memorySize: UInt16 = 0x03
    static let processorCount: UInt16 = 0x05
    static let maximumProcessorCount: UInt16 = 0x0f
    static let fileDirectory: UInt16 = 0x19
    static let firstFile: UInt16 = 0x20
    static let limit: UInt16 = 0x4000
  }

  private static let nameCapacity = 56

  private var items: [UInt16: [UInt8]] = [:]
  private var files: [(name: String, contents: [UInt8])] = []

  /// - Parameters:
  ///   - memorySize: guest RAM, in bytes.
  ///   - processorCount: the number of CPUs at start.
  ///   - maximumProcessorCount: the highest APIC ID plus one, as in QEMU.
  public init(memorySize: UInt64, processorCount: UInt16, maximumProcessorCount: UInt16) {
    items[Key.signature] = Array("QEMU".utf8)
    // Bit 0: the traditional selector and data registers. Bit 1, DMA, is clear.
    items[Key.identification] = [1, 0, 0, 0]
    items[Key.memorySize] = [UInt8](littleEndian: memorySize)
    items[Key.processorCount] = [UInt8](littleEndian: processorCount)
    items[Key.maximumProcessorCount] = [UInt8](littleEndian: maximumProcessorCount)
    numberFiles()
  }

  /// Adds a file. Files get keys in the order of their names, so keys may change until the last file is added.
  public mutating func addFile(named name: String, contents: [UInt8]) throws(FileError) {
    guard !name.isEmpty, name.utf8.count < Self.nameCapacity, name.utf8.allSatisfy({ (0x20...0x7e).contains($0) })
    else { throw .unusableName(name) }
    guard UInt32(exactly: contents.count) != nil else { throw .tooLarge(name) }
    guard !files.contains(where: { $0.name == name }) else { throw .duplicateName(name) }
    guard files.count < Int(Key.limit - Key.firstFile) else { throw .tooMany }
    files.append((name, contents))
    files.sort { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
    numberFiles()
  }

  /// Returns the item that a selector value selects, or an empty array. Bit 14 (write) has no effect. No item has bit
  /// 15 (architecture).
  public func contents(selector: UInt16) -> [UInt8] {
    selector & 0x8000 != 0 ? [] : items[selector & 0x3fff] ?? []
  }

  private mutating func numberFiles() {
    var directory = [UInt8](bigEndian: UInt32(truncatingIfNeeded: files.count))
    for (index, file) in files.enumerated() {
      let key = Key.firstFile + UInt16(truncatingIfNeeded: index)
      items[key] = file.contents
      directory += [UInt8](bigEndian: UInt32(truncatingIfNeeded: file.contents.count))
      directory += [UInt8](bigEndian: key)
      directory += [0, 0]
      directory += Array(file.name.utf8)
      directory += [UInt8](repeating: 0, count: Self.nameCapacity - file.name.utf8.count)
    }
    items[Key.fileDirectory] = directory
  }
}

extension [UInt8] {
  fileprivate init(bigEndian value: some FixedWidthInteger & UnsignedInteger) {
    self = Self(littleEndian: value).reversed()
  }
}
