import Hardware
import PCI

/// The vendor-specific capabilities by which a driver finds the structures of the PCI transport, struct virtio_pci_cap:
/// virtio 1.2, section 4.1.4. All structures are in one BAR, on a page each.
enum VirtioCapabilities {
  /// The BAR of the structures: a 64-bit BAR with the same index as in QEMU.
  static let bar = 4
  static let barSize: UInt64 = 0x4000

  static let common: UInt64 = 0x0000
  static let interruptStatus: UInt64 = 0x1000
  static let device: UInt64 = 0x2000
  static let notification: UInt64 = 0x3000
  /// The distance between the doorbells of two queues: notify_off_multiplier.
  static let notificationStride: UInt64 = 4

  /// cfg_type
  private enum StructureType: UInt8 {
    case common = 1
    case notification = 2
    case interruptStatus = 3
    case device = 4
    case configurationAccess = 5
  }

  /// Offsets in the capability VIRTIO_PCI_CAP_PCI_CFG, the configuration access window.
  enum Window {
    static let bar = 4
    static let offset = 8
    static let length = 12
    static let data = 16
  }

  /// Returns the capabilities in the order of the list. The window comes last.
  static func list(queueCount: Int, configurationSize: Int) -> [FunctionDescription.Capability] {
    let stride = [UInt8](littleEndian: UInt32(notificationStride))
    var list = [
      capability(.common, at: common, length: CommonConfiguration.size),
      capability(.notification, at: notification, length: queueCount * Int(notificationStride), more: stride),
      capability(.interruptStatus, at: interruptStatus, length: 1),
    ]
    if configurationSize > 0 { list.append(capability(.device, at: device, length: configurationSize)) }
    list.append(window)
    return list
  }

  private static func capability(
    _ type: StructureType, at offset: UInt64, length: Int, more: [UInt8] = []
  ) -> FunctionDescription.Capability {
    FunctionDescription.Capability(
      id: 0x09, body: body(type, bar: UInt8(bar), offset: UInt32(offset), length: UInt32(length), more: more))
  }

  /// The configuration access window: the driver sets bar, offset and length, then reads or writes the data (4.1.4.9).
  private static var window: FunctionDescription.Capability {
    let data = [UInt8](repeating: 0, count: 4)
    var writable: [UInt8] = [0, 0, 0xff, 0, 0, 0]
    writable += [UInt8](repeating: 0xff, count: 12)
    return FunctionDescription.Capability(
      id: 0x09, body: body(.configurationAccess, bar: 0, offset: 0, length: 0, more: data), writable: writable)
  }

  /// Returns the bytes after the identifier and the next pointer.
  private static func body(
    _ type: StructureType, bar: UInt8, offset: UInt32, length: UInt32, more: [UInt8]
  ) -> [UInt8] {
    let range = [UInt8](littleEndian: offset) + [UInt8](littleEndian: length)
    return [UInt8(16 + more.count), type.rawValue, bar, 0, 0, 0] + range + more
  }
}
