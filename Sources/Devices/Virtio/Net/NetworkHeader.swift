import Hardware

/// The header before each packet, struct virtio_net_hdr: virtio 1.2, section 5.1.6. It has 12 bytes: num_buffers is
/// always present with VIRTIO_F_VERSION_1, and no hash is reported.
public struct NetworkHeader: Hashable, Sendable {
  /// In bytes.
  public static let size = 12
  /// The fewest bytes of a frame: an Ethernet header.
  public static let frameMinimum = 14
  /// The most bytes of a frame, with segmentation offload: an Ethernet header and the largest IPv6 packet.
  public static let frameLimit = 14 + 40 + 65535
  /// The most segments of a frame: with the header they fit one writev (UIO_MAXIOV).
  public static let segmentLimit = VirtQueue.segmentLimit - 1

  /// Bytes 0 to 7 and 8 to 11.
  private var low: UInt64
  private var high: UInt32

  /// A header without offloads.
  public init() {
    low = 0
    high = 0
  }

  /// Decodes the first 12 bytes.
  init(_ bytes: [UInt8]) {
    low = bytes.load(UInt64.self, at: 0)
    high = bytes.load(UInt32.self, at: 8)
  }

  /// The header's bytes in memory.
  public var bytes: InlineArray<12, UInt8> {
    InlineArray { $0 < 8 ? low[byte: $0] : high[byte: $0 - 8] }
  }

  func store(into bytes: inout [UInt8]) {
    bytes.store(low, at: 0)
    bytes.store(high, at: 8)
  }

  // MARK: Fields

  public var flags: Flags {
    get { Flags(rawValue: low[byte: 0]) }
    set { low[byte: 0] = newValue.rawValue }
  }
  /// gso_type: a `Segmentation`, and 0x80 (VIRTIO_NET_HDR_GSO_ECN).
  public var segmentation: UInt8 {
    get { low[byte: 1] }
    set { low[byte: 1] = newValue }
  }
  /// hdr_len: a hint at the size of all protocol headers, in bytes.
  public var headerLength: UInt16 {
    get { UInt16(truncatingIfNeeded: low[bits: 16...31]) }
    set { low[bits: 16...31] = UInt64(newValue) }
  }
  /// gso_size: the most payload bytes of each segment.
  public var segmentSize: UInt16 {
    get { UInt16(truncatingIfNeeded: low[bits: 32...47]) }
    set { low[bits: 32...47] = UInt64(newValue) }
  }
  /// csum_start: the offset in the frame at which the checksummed bytes begin.
  public var checksumStart: UInt16 {
    get { UInt16(truncatingIfNeeded: low[bits: 48...63]) }
    set { low[bits: 48...63] = UInt64(newValue) }
  }
  /// csum_offset: the offset of the checksum after `checksumStart`.
  public var checksumOffset: UInt16 {
    get { UInt16(truncatingIfNeeded: high[bits: 0...15]) }
    set { high[bits: 0...15] = UInt32(newValue) }
  }
  /// num_buffers: the number of receive buffers that hold the packet.
  public var bufferCount: UInt16 {
    get { UInt16(truncatingIfNeeded: high[bits: 16...31]) }
    set { high[bits: 16...31] = UInt32(newValue) }
  }

  /// VIRTIO_NET_HDR_F_*
  public struct Flags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// NEEDS_CSUM: the receiver completes the checksum.
    public static let needsChecksum = Flags(rawValue: 1)
    /// DATA_VALID: the checksum has been verified.
    public static let dataValid = Flags(rawValue: 2)
  }

  /// VIRTIO_NET_HDR_GSO_*
  public enum Segmentation {
    public static let none: UInt8 = 0
    public static let tcp4: UInt8 = 1
    public static let udpFragments: UInt8 = 3
    public static let tcp6: UInt8 = 4
    public static let udp: UInt8 = 5
    public static let ecn: UInt8 = 0x80
  }

  // MARK: Checks

  /// Checks the header of a packet that the driver sends (5.1.6.2), and clears what has no meaning.
  /// - Parameters:
  ///   - frame: the number of bytes after the header.
  ///   - offloads: those that the driver negotiated.
  /// - Returns: false if the header is malformed or requests another offload.
  mutating func prepareToSend(frame: Int, offloads: NetworkOffloads) -> Bool {
    bufferCount = 0
    // The device ignores flags that it does not know (5.1.6.2.2).
    flags.formIntersection(.needsChecksum)
    if flags.contains(.needsChecksum) {
      guard offloads.contains(.checksum), Int(checksumStart) + Int(checksumOffset) + 2 <= frame else { return false }
    } else {
      checksumStart = 0
      checksumOffset = 0
    }
    // Only a hint, which may be wrong (5.1.6.2.2). A tap refuses one that is longer than the frame.
    headerLength = UInt16(truncatingIfNeeded: min(Int(headerLength), frame))
    guard segmentation != Segmentation.none else {
      segmentSize = 0
      return true
    }
    // Segmentation needs the checksum, too: 5.1.6.2.1.
    return flags.contains(.needsChecksum) && segmentSize > 0 && hasAllowedSegmentation(offloads)
  }

  /// Checks the header of a packet that the backend received (5.1.6.4.1), and clears flags that were not negotiated.
  /// - Parameter offloads: those that are enabled.
  /// - Returns: false if the packet has another offload.
  mutating func prepareToReceive(offloads: NetworkOffloads) -> Bool {
    bufferCount = 1
    if offloads.contains(.checksum) {
      flags.formIntersection([.needsChecksum, .dataValid])
    } else {
      guard !flags.contains(.needsChecksum) else { return false }
      flags = []
    }
    return segmentation == Segmentation.none || hasAllowedSegmentation(offloads)
  }

  private func hasAllowedSegmentation(_ offloads: NetworkOffloads) -> Bool {
    let hasECN = segmentation & Segmentation.ecn != 0
    switch segmentation & ~Segmentation.ecn {
    case Segmentation.tcp4: return offloads.contains(.tso4) && (!hasECN || offloads.contains(.ecn))
    case Segmentation.tcp6: return offloads.contains(.tso6) && (!hasECN || offloads.contains(.ecn))
    case Segmentation.udpFragments: return !hasECN && offloads.contains(.ufo)
    // The type is the same for IPv4 and IPv6.
    case Segmentation.udp: return !hasECN && !offloads.isDisjoint(with: [.uso4, .uso6])
    default: return false
    }
  }
}
