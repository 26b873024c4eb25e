import Testing

@testable import Devices

/// Tests the decoding of control commands: virtio 1.2, 5.1.6.5.
@Suite struct NetworkCommandTests {
  private static func decode(_ bytes: [UInt8]) -> NetworkCommand? { NetworkCommand(bytes, count: bytes.count) }

  /// The two lists of VIRTIO_NET_CTRL_MAC_TABLE_SET.
  private static func tables(_ unicast: Int, _ multicast: Int) -> [UInt8] {
    var bytes: [UInt8] = [1, 0]
    for (first, count) in [(UInt8(0x02), unicast), (0x03, multicast)] {
      bytes += [UInt8](littleEndian: UInt32(count))
      for index in 0..<count { bytes += [first, 0, 0, 0, UInt8(index >> 8), UInt8(index & 0xff)] }
    }
    return bytes
  }

  @Test("each command is decoded")
  func decodesEachCommand() {
    let modes: [ReceiveFilter.Modes] = [
      .promiscuous, .allMulticast, .allUnicast, .noMulticast, .noUnicast, .noBroadcast,
    ]
    for (command, mode) in modes.enumerated() {
      #expect(Self.decode([0, UInt8(command), 1]) == .setMode(mode, true))
      #expect(Self.decode([0, UInt8(command), 0]) == .setMode(mode, false))
    }
    #expect(Self.decode([1, 1, 2, 3, 4, 5, 6, 7]) == .setAddress(MACAddress(rawValue: 0x0203_0405_0607)))
    #expect(Self.decode([2, 0, 0xff, 0x0f]) == .setVLAN(4095, true))
    #expect(Self.decode([2, 1, 0x02, 0x01]) == .setVLAN(0x102, false))
    #expect(Self.decode([3, 0]) == .acknowledgeAnnouncement)
    #expect(Self.decode([4, 0, 2, 1]) == .setPairs(0x102))
    #expect(
      Self.decode([5, 0, 2, 0, 0, 0, 0, 0, 0xc0, 0])
        == .setOffloads([.netGuestChecksum, .netGuestUSO4, .netGuestUSO6]))
  }

  @Test("every other size, and every unknown command, is refused")
  func refusesOtherSizesAndCommands() {
    let valid: [[UInt8]] = [
      [0, 0, 1], [1, 1, 2, 0, 0, 0, 0, 0], [2, 0, 5, 0], [2, 1, 5, 0], [3, 0], [4, 0, 1, 0],
      [5, 0, 0, 0, 0, 0, 0, 0, 0, 0], Self.tables(2, 1),
    ]
    for bytes in valid {
      #expect(Self.decode(bytes) != nil)
      for count in 2..<bytes.count { #expect(Self.decode(Array(bytes[..<count])) == nil) }
      #expect(Self.decode(bytes + [0]) == nil)
    }
    let commands: [[UInt8]] = [[0, 6, 1], [1, 2], [2, 2, 5, 0], [3, 1], [4, 1, 1, 0], [5, 1], [6, 0]]
    for bytes in commands { #expect(Self.decode(bytes) == nil) }
    #expect(Self.decode([2, 0, 0, 0x10]) == nil, "VLAN 4096")
  }

  @Test("bytes past the command's end are not read")
  func readsNoBytesPastTheEnd() {
    #expect(NetworkCommand([0, 0, 1, 9, 9], count: 3) == .setMode(.promiscuous, true))
    #expect(NetworkCommand(Self.tables(1, 1), count: 12) == nil)
  }

  @Test("tables take 64 addresses in all; a list that does not fit overflows")
  func tablesOverflow() throws {
    func tables(_ unicast: Int, _ multicast: Int) throws -> (ReceiveFilter.Table, ReceiveFilter.Table) {
      guard case .setTables(let first, let second)? = Self.decode(Self.tables(unicast, multicast)) else {
        throw TestDriver.Failure.queueMissing
      }
      return (first, second)
    }
    var (unicast, multicast) = try tables(2, 62)
    #expect(unicast.addresses == [0, 1].map { MACAddress(rawValue: 0x0200_0000_0000 | $0) })
    #expect(multicast.addresses == (0..<62).map { MACAddress(rawValue: 0x0300_0000_0000 | $0) })
    #expect(!unicast.overflows && !multicast.overflows)
    (unicast, multicast) = try tables(2, 63)
    #expect(unicast.addresses.count == 2)
    #expect(multicast == ReceiveFilter.Table(overflows: true))
    // The list that overflows takes no room.
    (unicast, multicast) = try tables(65, 64)
    #expect(unicast == ReceiveFilter.Table(overflows: true))
    #expect(multicast.addresses.count == 64)
    (unicast, multicast) = try tables(5000, 5000)
    #expect(unicast.overflows && multicast.overflows)
  }

  @Test("a number of entries that does not fit the data is refused")
  func refusesHugeNumbersOfEntries() {
    for entries: UInt32 in [1, 0x2aaa_aaab, 0x8000_0000, .max] {
      let count = [UInt8](littleEndian: entries)
      #expect(Self.decode([1, 0] + count) == nil)
      #expect(Self.decode([1, 0] + count + [0, 0, 0, 0]) == nil)
      #expect(Self.decode([1, 0, 0, 0, 0, 0] + count) == nil)
    }
  }
}
