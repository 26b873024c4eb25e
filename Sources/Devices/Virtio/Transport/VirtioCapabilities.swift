import Hardware
import PCI

/// The vendor-specific capabilities that lead a driver to the structures of the PCI transport, struct virtio_pci_cap:
/// virtio 1.2, 4.1.4. All of them lie in one BAR, a page each.
enum VirtioCapabilities {
  /// The BAR with the structures, as QEMU has it; a 64-bit one.
  static let bar = 4
  static let barSize: UInt64 = 0x4000

  static let common: UInt64 = 0x0000
  static let interruptStatus: UInt64 = 0x1000
  static let device: UInt64 = 0x2000
  static let notification: UInt64 = 0x3000
  /// Distance of two queues' doorbells: notify_off_multiplier.
  static let notificationStride: UInt64 = 4

  /// cfg_type
  private enum Kind: UInt8 {
    case common = 1
    case notification = 2
    case interruptStatus = 3
    case device = 4
    case configurationAccess = 5
  }

  /// Offsets in the capability of VIRTIO_PCI_CAP_PCI_CFG.
  enum Window {
    static let bar = 4
    static let offset = 8
    static let length = 12
    static let data = 16
  }

  /// In the order of the list; the window comes last.
  static func list(queueCount: Int, configurationSize: Int) -> [FunctionDescription.Capability] {
    var stride: [UInt8] = []
    stride.append(littleEndian: UInt32(notificationStride))
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
    _ kind: Kind, at offset: UInt64, length: Int, more: [UInt8] = []
  ) -> FunctionDescription.Capability {
    FunctionDescription.Capability(
      id: 0x09, body: body(kind, bar: UInt8(bar), offset: UInt32(offset), length: UInt32(length), more: more))
  }

  /// The driver sets bar, offset and length, then reads or writes the data: 4.1.4.9.
  private static var window: FunctionDescription.Capability {
    let data = [UInt8](repeating: 0, count: 4)
    var writable: [UInt8] = [0, 0, 0xff, 0, 0, 0]
    writable += [UInt8](repeating: 0xff, count: 12)
    return FunctionDescription.Capability(
      id: 0x09, body: body(.configurationAccess, bar: 0, offset: 0, length: 0, more: data), writable: writable)
  }

  /// What follows the identifier and the next pointer.
  private static func body(_ kind: Kind, bar: UInt8, offset: UInt32, length: UInt32, more: [UInt8]) -> [UInt8] {
    var body: [UInt8] = [UInt8(16 + more.count), kind.rawValue, bar, 0, 0, 0]
    body.append(littleEndian: offset)
    body.append(littleEndian: length)
    return body + more
  }
}
