import Hardware

/// Why storage did not do what it was asked. The guest sees VIRTIO_BLK_S_UNSUPP for `unsupported`, and
/// VIRTIO_BLK_S_IOERR for the rest.
public enum BlockError: Error, Hashable, Sendable {
  case inputOutput
  case noSpace
  case readOnly
  case unsupported
}

/// Storage behind a disk: a file, a block device.
///
/// Each queue of a disk calls from its own thread, two at once if the guest wants. The caller has checked that ranges
/// lie within `size`; segments are guest physical runs in RAM, at most `VirtQueue.segmentLimit`, in the order of the
/// data. A call does all of its transfer, or throws.
public protocol BlockBackend: AnyObject, Sendable {
  /// In bytes, as it is now. After a change the owner calls `VirtioBlock.capacityChanged`.
  var size: UInt64 { get }
  var isReadOnly: Bool { get }

  /// - Parameter offset: in bytes.
  func read(at offset: UInt64, into segments: [PhysicalSegment]) throws(BlockError)
  func write(at offset: UInt64, from segments: [PhysicalSegment]) throws(BlockError)
  /// Returns when all that was written before is on stable storage.
  func flush() throws(BlockError)
  /// The bytes are of no more use; what is read there afterwards is any data. A hint.
  func discard(_ range: Range<UInt64>) throws(BlockError)
  /// The bytes read as zero afterwards.
  /// - Parameter mayUnmap: their storage may be given up.
  func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(BlockError)
}
