import Testing

@testable import Devices

/// Tests the receive filter: virtio 1.2, 5.1.6.5.1 to 5.1.6.5.3.
@Suite struct ReceiveFilterTests {
  private static let own: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]
  private static let other: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x57]
  private static let group: [UInt8] = [0x01, 0, 0x5e, 0, 0, 1]
  private static let everyone = [UInt8](repeating: 0xff, count: 6)

  private var filter = ReceiveFilter(address: MACAddress(own, at: 0))

  private func accepts(_ destination: [UInt8], vlan: UInt16? = nil) -> Bool {
    var packet = [UInt8](repeating: 0, count: 12) + destination + Self.other
    if let vlan { packet += [0x81, 0x00, UInt8(vlan >> 8), UInt8(vlan & 0xff)] }
    packet += [0x08, 0x00]
    return filter.accepts(packet, frame: 12, count: packet.count)
  }

  /// Which of own, other, group and broadcast addresses are accepted.
  private var accepted: [Bool] { [Self.own, Self.other, Self.group, Self.everyone].map { accepts($0) } }

  @Test("a new filter is promiscuous")
  func isPromiscuousAtFirst() {
    #expect(accepted == [true, true, true, true])
  }

  @Test("each mode accepts and refuses its kind of address")
  mutating func modesAcceptTheirKind() {
    filter.modes = []
    #expect(accepted == [true, false, false, true])
    filter.modes = .allMulticast
    #expect(accepted == [true, false, true, true])
    filter.modes = .allUnicast
    #expect(accepted == [true, true, false, true])
    filter.modes = [.noMulticast, .allMulticast]
    #expect(accepted == [true, false, false, true])
    filter.modes = [.noUnicast, .allUnicast]
    #expect(accepted == [false, false, false, true])
    filter.modes = .noBroadcast
    #expect(accepted == [true, false, false, false])
    filter.modes = [.promiscuous, .noUnicast, .noMulticast, .noBroadcast]
    #expect(accepted == [true, true, true, true])
  }

  @Test("tables add addresses of their kind, and an overflow accepts all of it")
  mutating func tablesAddAddresses() {
    filter.modes = []
    filter.unicast.addresses = [MACAddress(Self.other, at: 0)]
    #expect(accepted == [true, true, false, true])
    filter.unicast = ReceiveFilter.Table()
    filter.multicast.addresses = [MACAddress(Self.group, at: 0)]
    #expect(accepted == [true, false, true, true])
    // An address in the table of the other kind has no effect.
    filter.multicast.addresses = [MACAddress(Self.other, at: 0)]
    #expect(accepted == [true, false, false, true])
    filter.multicast = ReceiveFilter.Table(overflows: true)
    #expect(accepted == [true, false, true, true])
    filter.multicast = ReceiveFilter.Table()
    filter.unicast = ReceiveFilter.Table(overflows: true)
    #expect(accepted == [true, true, false, true])
  }

  @Test("without a VLAN table every VLAN passes")
  mutating func withoutATableEveryVLANPasses() {
    filter.modes = []
    #expect(accepts(Self.own, vlan: 5))
    #expect(!accepts(Self.other, vlan: 5))
  }

  @Test("a VLAN table lets its VLANs and untagged packets pass")
  mutating func vlanTableFilters() {
    filter = ReceiveFilter(address: MACAddress(Self.own, at: 0), filtersVLANs: true)
    filter.modes = []
    let vlans: [UInt16] = [0, 1, 63, 64, 4095]
    for vlan in vlans {
      #expect(!accepts(Self.own, vlan: vlan))
      filter.setVLAN(vlan, true)
      // The priority does not matter, and the address still does.
      #expect(accepts(Self.own, vlan: vlan | 0xe000))
      #expect(!accepts(Self.other, vlan: vlan))
      #expect(vlans.filter { accepts(Self.own, vlan: $0) } == [vlan])
      filter.setVLAN(vlan, false)
      #expect(!accepts(Self.own, vlan: vlan))
    }
    #expect(accepts(Self.own))
    filter.modes = .promiscuous
    #expect(accepts(Self.own, vlan: 7))
  }

  @Test("a tag at the very end of a packet is no tag")
  mutating func cutTagIsNoTag() {
    filter = ReceiveFilter(address: MACAddress(Self.own, at: 0), filtersVLANs: true)
    filter.modes = []
    let packet = Self.own + Self.other + [0x81, 0x00]
    #expect(filter.accepts(packet, frame: 0, count: 14))
  }
}
