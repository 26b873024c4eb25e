import FakeVhostUser
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import VhostUser

@Suite("messages of vhost-user") struct CodecTests {
  private let owner = SharedInteger()

  @Test func `a header has the request, flags with version 1, and the payload's size`() throws {
    let header = MessageHeader(request: 5, flags: [.version, .needReply], size: 0x48)
    #expect(header.bytes == [5, 0, 0, 0, 9, 0, 0, 0, 0x48, 0, 0, 0])
    #expect(try MessageHeader(header.bytes) == header)
  }

  @Test(arguments: [0, 2, 3, 0x11, 0x8000_0001] as [UInt32])
  func `a header with another version or unknown flags is refused`(_ flags: UInt32) {
    #expect(throws: VhostUserError.messageFlags(request: 1, flags: flags)) {
      try MessageHeader([UInt8](littleEndian: UInt32(1), flags, UInt32(8)))
    }
  }

  @Test func `a header with a longer payload than a configuration space is refused`() throws {
    _ = try MessageHeader([UInt8](littleEndian: UInt32(24), UInt32(5), UInt32(268)))
    for size in [269, .max] as [UInt32] {
      #expect(throws: VhostUserError.messageSize(request: 24, size: size)) {
        try MessageHeader([UInt8](littleEndian: UInt32(24), UInt32(5), size))
      }
    }
  }

  @Test func `payloads have the layout of the specification`() {
    #expect(VringState(index: 1, number: 0x100).bytes == [1, 0, 0, 0, 0, 1, 0, 0])
    let addresses = VringAddresses(index: 2, descriptorArea: 0x11, deviceArea: 0x22, driverArea: 0x33)
    var bytes: [UInt8] = [2, 0, 0, 0, 0, 0, 0, 0]
    for first in [0x11, 0x22, 0x33, 0] as [UInt8] { bytes += [first, 0, 0, 0, 0, 0, 0, 0] }
    #expect(addresses.bytes == bytes)

    let file = SharedDescriptor(0, owner: owner)
    let region = MemoryRegion(address: 0x1_0000_0000, size: 0x20_0000, fileOffset: 0xc000_0000, file: file)
    #expect(
      MemoryRegion.table([region]) == [
        1, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0,
      ])

    #expect(
      ConfigurationPayload(offset: 0x20, bytes: [1, 2]).payload == [0x20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2])

    var inflight = InflightDescription(queueCount: 2, queueSize: 0x80)
    inflight.size = 0x1000
    inflight.offset = 0x2000
    let inflightBytes: [UInt8] = [
      0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 2, 0, 0x80, 0, 0, 0, 0, 0,
    ]
    #expect(inflight.bytes == inflightBytes)
    #expect(InflightDescription(inflightBytes) == inflight)
  }

  @Test func `an IOTLB message is the kernel's struct vhost_iotlb_msg`() {
    let message = IOTLBMessage(.update, address: 0x1000, count: 0x2000, userAddress: 0x3000, permissions: 3)
    var bytes: [UInt8] = []
    for second in [0x10, 0x20, 0x30] as [UInt8] { bytes += [0, second, 0, 0, 0, 0, 0, 0] }
    bytes += [3, 2, 0, 0, 0, 0, 0, 0]
    #expect(message.bytes == bytes)
    #expect(IOTLBMessage(bytes) == message)
    bytes[25] = 9
    #expect(IOTLBMessage(bytes) == nil)
  }

  @Test func `requests have the numbers of the specification`() {
    let numbers = FrontEndRequest.allCases.map(\.rawValue)
    #expect(
      numbers == [1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 21, 22, 24, 25, 31, 32, 34, 39, 40])
  }

  @Test func `pieces of any size make the same messages`() throws {
    let bytes = FakeBackEnd.message(1, [1, 2, 3, 4, 5, 6, 7, 8])
    for size in 1...20 {
      var assembler = MessageAssembler()
      var position = 0
      var messages: [ReceivedMessage] = []
      while position < bytes.count {
        let count = min(size, assembler.needed, bytes.count - position)
        if let message = try assembler.take(Array(bytes[position..<position + count]), []) { messages.append(message) }
        position += count
      }
      #expect(messages.count == 1 && messages[0].payload == [1, 2, 3, 4, 5, 6, 7, 8])
      #expect(assembler.needed == 12)
    }
  }

  @Test func `a message without payload is complete with its header`() throws {
    var assembler = MessageAssembler()
    let message = try assembler.take(FakeBackEnd.message(2, flags: 1, []), [])
    #expect(message?.header.request == 2)
  }

  @Test func `a message with more than eight descriptors is refused`() throws {
    var assembler = MessageAssembler()
    let nine = (0..<9).map { _ in SharedDescriptor(0, owner: owner) }
    #expect(throws: VhostUserError.descriptors(request: 0, count: 9)) { try assembler.take([1], nine) }
  }
}
