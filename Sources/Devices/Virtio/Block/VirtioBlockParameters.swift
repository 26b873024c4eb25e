/// The options of a `virtio-blk-pci` device. Comments give QEMU's property names.
public struct VirtioBlockParameters: Hashable, Sendable {
  /// An invalid option, with its value.
  public enum Problem: Error, Hashable, Sendable {
    /// num-queues is not 1 to 1024.
    case queueCount(Int)
    /// queue-size is not a power of two from 4 to 1024.
    case queueSize(Int)
    /// A block size is not a power of two from 512 bytes to 2 MiB.
    case blockSize(Int)
    /// The physical block size is smaller than the logical one.
    case physicalBlockSize(Int)
    /// vectors is not 0 to 2048.
    case vectors(Int)
    /// serial has more than 20 bytes.
    case serial(String)
  }

  /// num-queues
  public var queueCount = 1
  /// queue-size: the number of descriptors per queue.
  public var queueSize = 256
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
    guard (1...1024).contains(queueCount) else { throw .queueCount(queueCount) }
    guard (4...Int(VirtQueue.sizeLimit)).contains(queueSize), queueSize.nonzeroBitCount == 1 else {
      throw .queueSize(queueSize)
    }
    let physical = physicalBlockSize ?? logicalBlockSize
    for size in [logicalBlockSize, physical] {
      guard (512...2 << 20).contains(size), size.nonzeroBitCount == 1 else { throw .blockSize(size) }
    }
    guard physical >= logicalBlockSize else { throw .physicalBlockSize(physical) }
    if let vectors = transport.vectors {
      guard VirtioOptions.vectorRange.contains(vectors) else { throw .vectors(vectors) }
    }
    guard serial.utf8.count <= VirtioBlock.serialSize else { throw .serial(serial) }
  }
}
