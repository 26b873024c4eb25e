import Hardware

// The payloads of the requests: vhost-user.rst, "Payload".

/// A vring state description.
struct VringState: Hashable, Sendable {
  var index: UInt32
  var number: UInt32

  static let size = 8

  var bytes: [UInt8] { [UInt8](littleEndian: index, number) }

  init(index: UInt32, number: UInt32) {
    self.index = index
    self.number = number
  }

  /// - Parameter bytes: `size` bytes.
  init(_ bytes: [UInt8]) {
    index = bytes.load(UInt32.self, at: 0)
    number = bytes.load(UInt32.self, at: 4)
  }
}

/// A vring address description, without a log. Its addresses are user addresses, which here equal the guest physical
/// ones, or IOVAs.
struct VringAddresses: Hashable, Sendable {
  var index: UInt32
  var descriptorArea: UInt64
  var deviceArea: UInt64
  var driverArea: UInt64

  /// The flags and the log's address are zero. The order is that of the kernel's struct vhost_vring_addr: the used ring
  /// comes before the available ring.
  var bytes: [UInt8] { [UInt8](littleEndian: index, UInt32(0), descriptorArea, deviceArea, driverArea, UInt64(0)) }
}

/// The payload of the requests that set a ring's eventfd.
enum VringDescriptor {
  /// Set if the message has no descriptor.
  static let none: UInt64 = 1 << 8
  /// The index is in bits 7:0.
  static let queueLimit = 256
}

/// A range of guest RAM that the back end maps.
public struct MemoryRegion: Sendable {
  /// The guest physical address. It is the user address of the protocol, too: that is only a name for the same bytes,
  /// and so the back end learns nothing about this process.
  public var address: UInt64
  /// In bytes.
  public var size: UInt64
  /// The region's offset in its file.
  public var fileOffset: UInt64
  /// The memfd.
  public var file: SharedDescriptor

  public init(address: UInt64, size: UInt64, fileOffset: UInt64, file: SharedDescriptor) {
    self.address = address
    self.size = size
    self.fileOffset = fileOffset
    self.file = file
  }

  /// The most regions in one table (VHOST_MEMORY_BASELINE_NREGIONS).
  public static let limit = 8

  static func table(_ regions: [MemoryRegion]) -> [UInt8] {
    var bytes = [UInt8](littleEndian: UInt32(regions.count), UInt32(0))
    for region in regions {
      bytes.append(littleEndian: region.address, region.size, region.address, region.fileOffset)
    }
    return bytes
  }
}

/// A part of the device configuration.
struct ConfigurationPayload: Hashable, Sendable {
  var offset: UInt32
  var bytes: [UInt8]

  static let headerSize = 12
  /// VHOST_USER_MAX_CONFIG_SIZE, in bytes.
  static let limit = 256

  /// The flags are zero: the driver, not a migration, reads or writes.
  var payload: [UInt8] { [UInt8](littleEndian: offset, UInt32(bytes.count), UInt32(0)) + bytes }
}

/// An inflight description. In C it ends with four bytes of padding, which are on the wire.
struct InflightDescription: Hashable, Sendable {
  /// In bytes.
  var size: UInt64 = 0
  /// Of the region in its file.
  var offset: UInt64 = 0
  var queueCount: UInt16
  var queueSize: UInt16

  static let size = 24

  init(queueCount: UInt16, queueSize: UInt16) {
    self.queueCount = queueCount
    self.queueSize = queueSize
  }

  /// - Parameter bytes: `Self.size` bytes.
  init(_ bytes: [UInt8]) {
    size = bytes.load(UInt64.self, at: 0)
    offset = bytes.load(UInt64.self, at: 8)
    queueCount = bytes.load(UInt16.self, at: 16)
    queueSize = bytes.load(UInt16.self, at: 18)
  }

  var bytes: [UInt8] { [UInt8](littleEndian: size, offset, queueCount, queueSize, UInt32(0)) }
}

/// An IOTLB message: struct vhost_iotlb_msg of <linux/vhost_types.h>, which ends with padding.
struct IOTLBMessage: Hashable, Sendable {
  enum MessageType: UInt8, Sendable {
    case miss = 1
    case update = 2
    case invalidate = 3
    case accessFail = 4
  }

  var address: UInt64
  /// In bytes.
  var count: UInt64
  var userAddress: UInt64
  /// Bit 0: read; bit 1: write.
  var permissions: UInt8
  var type: MessageType

  static let size = 32

  init(_ type: MessageType, address: UInt64, count: UInt64, userAddress: UInt64 = 0, permissions: UInt8 = 0) {
    self.type = type
    self.address = address
    self.count = count
    self.userAddress = userAddress
    self.permissions = permissions
  }

  /// - Parameter bytes: `Self.size` bytes.
  init?(_ bytes: [UInt8]) {
    guard let type = MessageType(rawValue: bytes[25]) else { return nil }
    address = bytes.load(UInt64.self, at: 0)
    count = bytes.load(UInt64.self, at: 8)
    userAddress = bytes.load(UInt64.self, at: 16)
    permissions = bytes[24]
    self.type = type
  }

  var bytes: [UInt8] {
    [UInt8](littleEndian: address, count, userAddress, permissions, type.rawValue, UInt16(0), UInt32(0))
  }
}
