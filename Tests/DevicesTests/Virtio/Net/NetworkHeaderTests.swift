import Testing

@testable import Devices

/// Tests the checks of struct virtio_net_hdr: virtio 1.2, 5.1.6.2 and 5.1.6.4.1.
@Suite struct NetworkHeaderTests {
  private static let all = NetworkOffloads(rawValue: 0x7f)

  private static func header(_ bytes: [UInt8]) -> NetworkHeader { NetworkHeader(bytes) }

  private static func bytes(_ header: NetworkHeader) -> [UInt8] {
    let bytes = header.bytes
    return bytes.indices.map { bytes[$0] }
  }

  /// Returns the header as the backend sees it; nil if the packet is refused.
  private static func sent(
    _ header: NetworkHeader, frame: Int = 4000, _ offloads: NetworkOffloads
  ) -> NetworkHeader? {
    var header = header
    return header.prepareToSend(frame: frame, offloads: offloads) ? header : nil
  }

  /// Returns the header as the driver sees it; nil if the packet is refused.
  private static func received(_ header: NetworkHeader, _ offloads: NetworkOffloads) -> NetworkHeader? {
    var header = header
    return header.prepareToReceive(offloads: offloads) ? header : nil
  }

  /// A header that requests a checksum, and segmentation if the type is not zero.
  private static func request(_ segmentation: UInt8, size: UInt16 = 1448) -> NetworkHeader {
    var header = NetworkHeader()
    header.flags = .needsChecksum
    header.checksumStart = 34
    header.checksumOffset = 16
    header.segmentation = segmentation
    header.segmentSize = segmentation == 0 ? 0 : size
    header.headerLength = 54
    return header
  }

  @Test("the fields have their places in the twelve bytes")
  func fieldsHaveTheirPlaces() {
    let raw: [UInt8] = [1, 0x81, 0x36, 0x01, 0xa8, 0x05, 0x22, 0x02, 0x10, 0x03, 0x07, 0x04]
    var header = Self.header(raw)
    #expect(header.flags == .needsChecksum)
    #expect(header.segmentation == 0x81)
    #expect(header.headerLength == 0x0136)
    #expect(header.segmentSize == 0x05a8)
    #expect(header.checksumStart == 0x0222)
    #expect(header.checksumOffset == 0x0310)
    #expect(header.bufferCount == 0x0407)
    #expect(Self.bytes(header) == raw)
    header.checksumOffset = 0x1122
    header.bufferCount = 0x3344
    header.segmentSize = 0x5566
    #expect(Self.bytes(header) == [1, 0x81, 0x36, 0x01, 0x66, 0x55, 0x22, 0x02, 0x22, 0x11, 0x44, 0x33])
    var stored = [UInt8](repeating: 9, count: 13)
    header.store(into: &stored)
    #expect(stored == Self.bytes(header) + [9])
  }

  @Test("a header to send loses what has no meaning")
  func clearsWhatHasNoMeaning() throws {
    // All fields set, but neither a checksum nor segmentation requested; DATA_VALID and an unknown flag.
    let header = Self.header([0xfe, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    let sent = try #require(Self.sent(header, frame: 60, []))
    #expect(Self.bytes(sent) == [0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test("a checksum to complete must be negotiated and lie in the frame")
  func checksumMustLieInTheFrame() {
    var header = Self.request(0)
    header.headerLength = 50
    #expect(Self.sent(header, frame: 52, .checksum) == header)
    #expect(Self.sent(header, frame: 51, .checksum) == nil)
    #expect(Self.sent(header, frame: 52, []) == nil)
    header.checksumStart = .max
    header.checksumOffset = .max
    #expect(Self.sent(header, frame: NetworkHeader.frameLimit, .checksum) == nil)
  }

  struct Kind: Sendable, CustomTestStringConvertible {
    let type: UInt8
    let offloads: NetworkOffloads
    var testDescription: String { "type \(type)" }
  }

  @Test(
    "each segmentation type needs its offload, both ways",
    arguments: [
      Kind(type: 1, offloads: .tso4), Kind(type: 4, offloads: .tso6), Kind(type: 3, offloads: .ufo),
      Kind(type: 5, offloads: .uso4), Kind(type: 5, offloads: .uso6), Kind(type: 0x81, offloads: [.tso4, .ecn]),
      Kind(type: 0x84, offloads: [.tso6, .ecn]),
    ])
  func segmentationNeedsItsOffload(_ kind: Kind) {
    let header = Self.request(kind.type)
    let offloads = kind.offloads.union(.checksum)
    #expect(Self.sent(header, offloads) == header)
    #expect(Self.received(header, offloads)?.segmentation == kind.type)
    // Without one of its offloads, or with all that have nothing to do with it.
    for bit: UInt8 in 0..<7 where kind.offloads.contains(NetworkOffloads(rawValue: 1 << bit)) {
      let less = offloads.subtracting(NetworkOffloads(rawValue: 1 << bit))
      #expect(Self.sent(header, less) == nil)
      #expect(Self.received(header, less) == nil)
    }
    var others = Self.all.subtracting(kind.offloads)
    if kind.type == 5 { others.subtract([.uso4, .uso6]) }
    #expect(Self.sent(header, others) == nil)
    #expect(Self.received(header, others) == nil)
  }

  @Test("unknown segmentation types are refused", arguments: [2, 6, 0x7f, 0x80, 0x83, 0x85, 0xff] as [UInt8])
  func unknownTypesAreRefused(type: UInt8) {
    #expect(Self.sent(Self.request(type), Self.all) == nil)
    #expect(Self.received(Self.request(type), Self.all) == nil)
  }

  @Test("segmentation to send needs a size and the checksum")
  func segmentationNeedsASizeAndTheChecksum() {
    #expect(Self.sent(Self.request(1, size: 0), Self.all) == nil)
    var header = Self.request(1)
    header.flags = []
    #expect(Self.sent(header, Self.all) == nil)
  }

  @Test("received flags are those that the driver accepts, and num_buffers is 1")
  func receivedFlagsAreNegotiated() throws {
    var header = Self.header([0xff, 0, 0, 0, 0, 0, 34, 0, 16, 0, 9, 9])
    let received = try #require(Self.received(header, .checksum))
    #expect(Self.bytes(received) == [3, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0])
    #expect(Self.received(header, []) == nil)
    header.flags = .dataValid
    #expect(Self.received(header, [])?.flags == NetworkHeader.Flags())
  }
}
