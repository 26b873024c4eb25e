/// The options of a `virtio-blk-pci` device. Comments give QEMU's property names.
public struct VirtioBlockParameters: Hashable, Sendable {
  /// The option whose value is out of range. The raw value is QEMU's property name.
  public enum Problem: String, Error, Hashable, Sendable {
    case queueCount = "num-queues"
    case queueSize = "queue-size"
    case logicalBlockSize = "logical_block_size"
    case physicalBlockSize = "physical_block_size"
    case vectors, serial
  }

  public static let queueCounts: ClosedRange<UInt16> = 1...256
  public static let queueSizes: ClosedRange<UInt16> = 4...VirtQueue.sizeLimit

  /// num-queues; nil for one queue. The machine replaces nil by the number of its vCPUs.
  public var queueCount: UInt16?
  /// queue-size: the number of descriptors per queue.
  public var queueSize: UInt16 = 256
  /// serial: at most 20 bytes.
  public var serial = ""
  /// logical_block_size, in bytes.
  public var logicalBlockSize = 512
  /// physical_block_size, in bytes; nil for the logical block size.
  public var physicalBlockSize: Int?
  /// discard
  public var discard = true
  /// write-zeroes
  public var writeZeroes = true
  /// The options of every virtio device: iommu_platform, event_idx and so on.
  public var transport = VirtioOptions()

  public init() {}

  /// - Throws: the first value that is out of range.
  public func validate() throws(Problem) {
    if let queueCount, !Self.queueCounts.contains(queueCount) { throw .queueCount }
    guard Self.queueSizes.contains(queueSize), queueSize.nonzeroBitCount == 1 else {
      throw .queueSize
    }
    func isBlockSize(_ size: Int) -> Bool { (512...2 << 20).contains(size) && size.nonzeroBitCount == 1 }
    guard isBlockSize(logicalBlockSize) else { throw .logicalBlockSize }
    let physical = physicalBlockSize ?? logicalBlockSize
    guard isBlockSize(physical), physical >= logicalBlockSize else { throw .physicalBlockSize }
    if let vectors = transport.vectors {
      guard VirtioOptions.vectorRange.contains(vectors) else { throw .vectors }
    }
    guard serial.utf8.count <= VirtioBlock.serialSize else { throw .serial }
  }
}
