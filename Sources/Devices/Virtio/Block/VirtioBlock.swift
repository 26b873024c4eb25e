import Hardware
import Synchronization

/// A disk: virtio 1.2, section 5.2. This file declares its features and configuration; `VirtioBlockRequest` serves its
/// requests.
public final class VirtioBlock: VirtioDevice {
  /// The unit of requests and capacity, in bytes, for any logical block size (5.2.4).
  static let sectorSize: UInt64 = 512
  /// VIRTIO_BLK_ID_BYTES
  public static let serialSize = 20
  /// The most ranges in one discard or write-zeroes request.
  static let rangeLimit: UInt32 = 32
  /// The most sectors in one range: 1 GiB to discard, but 64 MiB for write zeroes, which a backend may have to write.
  static let discardLimit: UInt32 = 1 << 21
  static let writeZeroesLimit: UInt32 = 1 << 17

  public let options: VirtioBlockParameters
  let backend: any BlockBackend
  /// The answer to VIRTIO_BLK_T_GET_ID.
  let serial: [UInt8]
  private let owner = Mutex(WeakVirtioTransport())

  /// - Throws: the problem that `VirtioBlockParameters.validate` finds.
  public init(options: VirtioBlockParameters, backend: any BlockBackend) throws(VirtioBlockParameters.Problem) {
    try options.validate()
    self.options = options
    self.backend = backend
    var serial = Array(options.serial.utf8)
    serial.append(contentsOf: repeatElement(0, count: Self.serialSize - serial.count))
    self.serial = serial
  }

  /// Announces a change of the backend's size to the driver.
  public func capacityChanged() { owner.withLock { $0.transport }?.configurationChanged() }

  /// The capacity in sectors, without an incomplete logical block at the end.
  var capacity: UInt64 {
    let block = UInt64(options.logicalBlockSize)
    return backend.size / block * (block / Self.sectorSize)
  }

  // MARK: VirtioDevice

  public var type: UInt16 { 2 }
  /// Mass storage, SCSI: as in QEMU, for drivers that check it.
  public var classCode: UInt32 { 0x010000 }
  public var name: String { "virtio-blk" }
  public var queueSizes: [UInt16] { Array(repeating: options.queueSize, count: Int(queueCount)) }
  private var queueCount: UInt16 { options.queueCount ?? 1 }

  public var features: VirtioFeatures {
    var features: VirtioFeatures = [.blockSegmentMaximum, .blockSize, .blockFlush]
    if backend.isReadOnly { features.insert(.blockReadOnly) }
    if options.physicalBlockSize != nil { features.insert(.blockTopology) }
    if queueCount > 1 { features.insert(.blockMultipleQueues) }
    if options.discard, !backend.isReadOnly { features.insert(.blockDiscard) }
    if options.writeZeroes, !backend.isReadOnly { features.insert(.blockWriteZeroes) }
    return features
  }

  /// struct virtio_blk_config, up to the fields of write zeroes: 5.2.4.
  public var configuration: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 0x3c)
    let block = options.logicalBlockSize
    bytes.store(capacity, at: 0x00)
    // seg_max: the header and the status need a descriptor each.
    bytes.store(UInt32(options.queueSize - 2), at: 0x0c)
    bytes.store(UInt32(block), at: 0x14)
    // physical_block_exp: log2 of the number of logical blocks per physical block.
    bytes[0x18] = UInt8(((options.physicalBlockSize ?? block) / block).trailingZeroBitCount)
    bytes.store(queueCount, at: 0x22)
    let features = features
    if features.contains(.blockDiscard) {
      bytes.store(Self.discardLimit, at: 0x24)
      bytes.store(Self.rangeLimit, at: 0x28)
      bytes.store(UInt32(UInt64(block) / Self.sectorSize), at: 0x2c)
    }
    if features.contains(.blockWriteZeroes) {
      bytes.store(Self.writeZeroesLimit, at: 0x30)
      bytes.store(Self.rangeLimit, at: 0x34)
      bytes[0x38] = 1  // write_zeroes_may_unmap
    }
    return bytes
  }

  public func connect(to transport: any VirtioTransport) {
    owner.withLock { $0 = WeakVirtioTransport(transport) }
  }

  public func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    try queue.drain { queue throws(VirtQueueError) in try serve(&queue) }
  }
}

/// VIRTIO_BLK_F_*: 5.2.3.
extension VirtioFeatures {
  static let blockSegmentMaximum = VirtioFeatures(bit: 2)
  static let blockReadOnly = VirtioFeatures(bit: 5)
  static let blockSize = VirtioFeatures(bit: 6)
  static let blockFlush = VirtioFeatures(bit: 9)
  static let blockTopology = VirtioFeatures(bit: 10)
  static let blockMultipleQueues = VirtioFeatures(bit: 12)
  static let blockDiscard = VirtioFeatures(bit: 13)
  static let blockWriteZeroes = VirtioFeatures(bit: 14)
}
