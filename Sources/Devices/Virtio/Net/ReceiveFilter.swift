import Hardware

/// The receive filter of a network device: virtio 1.2, sections 5.1.6.5.1 to 5.1.6.5.3. The driver sets it through the
/// control queue.
struct ReceiveFilter: Hashable, Sendable {
  /// The most addresses in both tables together, as in QEMU.
  static let tableLimit = 64
  /// The number of VLAN identifiers.
  static let vlanCount = 4096

  /// The modes of VIRTIO_NET_CTRL_RX, by the number of the command.
  struct Modes: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// PROMISC: every packet is accepted.
    static let promiscuous = Modes(rawValue: 0x01)
    /// ALLMULTI, ALLUNI: every address of the kind is accepted.
    static let allMulticast = Modes(rawValue: 0x02)
    static let allUnicast = Modes(rawValue: 0x04)
    /// NOMULTI, NOUNI, NOBCAST: no address of the kind is accepted.
    static let noMulticast = Modes(rawValue: 0x08)
    static let noUnicast = Modes(rawValue: 0x10)
    static let noBroadcast = Modes(rawValue: 0x20)
  }

  /// The addresses of one kind that the driver accepts.
  struct Table: Hashable, Sendable {
    var addresses: [MACAddress] = []
    /// The driver has set more addresses than fit, so every address of the kind is accepted.
    var overflows = false
  }

  /// The device's own address.
  var address: MACAddress
  /// After a reset the device accepts everything, for drivers that set no mode.
  var modes: Modes = .promiscuous
  var unicast = Table()
  var multicast = Table()
  /// Bit n%64 of word n/64: VLAN n is accepted. nil if VIRTIO_NET_F_CTRL_VLAN is not negotiated: all are.
  private var vlans: [UInt64]?

  init(address: MACAddress, filtersVLANs: Bool = false) {
    self.address = address
    if filtersVLANs { vlans = [UInt64](repeating: 0, count: Self.vlanCount / 64) }
  }

  /// - Parameter vlan: less than `vlanCount`.
  mutating func setVLAN(_ vlan: UInt16, _ isAccepted: Bool) {
    vlans?[Int(vlan) / 64][bit: Int(vlan) % 64] = isAccepted
  }

  /// Returns whether the driver wants a packet.
  /// - Parameters:
  ///   - bytes: contain the packet.
  ///   - frame: the offset of its Ethernet header.
  ///   - count: the number of bytes up to the packet's end.
  func accepts(_ bytes: [UInt8], frame: Int, count: Int) -> Bool {
    if modes.contains(.promiscuous) { return true }
    // Tag Protocol Identifier 0x8100 (IEEE 802.1Q), then priority (4 bits) and VLAN identifier (12 bits).
    if let vlans, count >= frame + 16, bytes[frame + 12] == 0x81, bytes[frame + 13] == 0 {
      let vlan = Int(bytes[frame + 14] & 0xf) << 8 | Int(bytes[frame + 15])
      guard vlans[vlan / 64][bit: vlan % 64] else { return false }
    }
    let destination = MACAddress(bytes, at: frame)
    if destination == .broadcast { return !modes.contains(.noBroadcast) }
    if destination.isMulticast {
      if modes.contains(.noMulticast) { return false }
      return modes.contains(.allMulticast) || multicast.overflows || multicast.addresses.contains(destination)
    }
    if modes.contains(.noUnicast) { return false }
    return modes.contains(.allUnicast) || unicast.overflows || destination == address
      || unicast.addresses.contains(destination)
  }
}
