import Hardware

/// A command of the control queue: virtio 1.2, section 5.1.6.5. A class, a command and the command's data; the device
/// answers with one byte.
enum NetworkCommand: Hashable, Sendable {
  /// VIRTIO_NET_CTRL_RX
  case setMode(ReceiveFilter.Modes, Bool)
  /// VIRTIO_NET_CTRL_MAC_TABLE_SET
  case setTables(unicast: ReceiveFilter.Table, multicast: ReceiveFilter.Table)
  /// VIRTIO_NET_CTRL_MAC_ADDR_SET
  case setAddress(MACAddress)
  /// VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_CTRL_VLAN_DEL
  case setVLAN(UInt16, Bool)
  /// VIRTIO_NET_CTRL_ANNOUNCE_ACK
  case acknowledgeAnnouncement
  /// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
  case setPairs(UInt16)
  /// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET; the offloads have the numbers of their feature bits.
  case setOffloads(VirtioFeatures)

  /// The class and the command, in bytes.
  static let headerSize = 2
  /// The most bytes of a command: about 10,000 addresses. A longer command is refused.
  static let sizeLimit = 64 << 10

  /// Decodes a command.
  /// - Parameter count: the number of bytes at the front of `bytes`, at least `headerSize`.
  /// - Returns: nil if the command is unknown, or its data does not have the right size.
  init?(_ bytes: [UInt8], count: Int) {
    let data = Self.headerSize
    let size = count - data
    let command = bytes[1]
    switch bytes[0] {
    case 0:
      guard size == 1, command < 6 else { return nil }
      self = .setMode(ReceiveFilter.Modes(rawValue: 1 << command), bytes[data] != 0)
    case 1 where command == 0:
      guard let tables = Self.tables(bytes, data..<count) else { return nil }
      self = tables
    case 1:
      guard command == 1, size == 6 else { return nil }
      self = .setAddress(MACAddress(bytes, at: data))
    case 2:
      guard command < 2, size == 2 else { return nil }
      let vlan = bytes.load(UInt16.self, at: data)
      guard vlan < ReceiveFilter.vlanCount else { return nil }
      self = .setVLAN(vlan, command == 0)
    case 3:
      guard command == 0, size == 0 else { return nil }
      self = .acknowledgeAnnouncement
    case 4:
      guard command == 0, size == 2 else { return nil }
      self = .setPairs(bytes.load(UInt16.self, at: data))
    case 5:
      guard command == 0, size == 8 else { return nil }
      self = .setOffloads(VirtioFeatures(rawValue: bytes.load(UInt64.self, at: data)))
    default: return nil
    }
  }

  /// Decodes two lists: unicast and multicast addresses, each after its number of entries (struct virtio_net_ctrl_mac).
  private static func tables(_ bytes: [UInt8], _ range: Range<Int>) -> Self? {
    var at = range.lowerBound
    var room = ReceiveFilter.tableLimit
    func next() -> ReceiveFilter.Table? {
      guard range.upperBound - at >= 4 else { return nil }
      let entries = Int(bytes.load(UInt32.self, at: at))
      at += 4
      guard entries <= (range.upperBound - at) / 6 else { return nil }
      defer { at += 6 * entries }
      guard entries <= room else { return ReceiveFilter.Table(overflows: true) }
      room -= entries
      return ReceiveFilter.Table(addresses: (0..<entries).map { MACAddress(bytes, at: at + 6 * $0) })
    }
    guard let unicast = next(), let multicast = next(), at == range.upperBound else { return nil }
    return .setTables(unicast: unicast, multicast: multicast)
  }

  /// The features that the driver must have negotiated.
  var requiredFeatures: VirtioFeatures {
    switch self {
    case .setMode(let mode, _):
      [.promiscuous, .allMulticast].contains(mode)
        ? .netControlReceive : [.netControlReceive, .netControlReceiveExtra]
    case .setTables: .netControlReceive
    case .setAddress: .netControlMAC
    case .setVLAN: .netControlVLAN
    case .acknowledgeAnnouncement: .netGuestAnnounce
    case .setPairs: .netMultiqueue
    case .setOffloads: .netControlGuestOffloads
    }
  }
}
