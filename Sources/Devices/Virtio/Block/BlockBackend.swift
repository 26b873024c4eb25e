import Hardware

/// The reason why storage failed. The guest sees VIRTIO_BLK_S_UNSUPP for `unsupported`, and VIRTIO_BLK_S_IOERR for all
/// others.
public enum BlockError: Error, Hashable, Sendable {
  case inputOutput
  case noSpace
  case readOnly
  case unsupported
}

/// The storage of a disk: a file or a block device.
///
/// Each queue of a disk calls on its own thread, so calls may be concurrent. The caller has checked that ranges lie
/// within `size`. Segments are guest physical ranges in RAM, at most `VirtQueue.segmentLimit`, in the order of the
/// data. A call completes the whole transfer, or throws.
public protocol BlockBackend: AnyObject, Sendable {
  /// The current size in bytes. After a change the owner calls `VirtioBlock.capacityChanged`.
  var size: UInt64 { get }
  var isReadOnly: Bool { get }

  /// Reads from a byte offset.
  func read(at offset: UInt64, into segments: [PhysicalSegment]) throws(BlockError)
  /// Writes to a byte offset.
  func write(at offset: UInt64, from segments: [PhysicalSegment]) throws(BlockError)
  /// Waits until all completed writes are on stable storage.
  func flush() throws(BlockError)
  /// Hints that the bytes are no longer needed. Later reads of them may return any data.
  func discard(_ range: Range<UInt64>) throws(BlockError)
  /// Writes zeros.
  /// - Parameter mayUnmap: whether the backend may deallocate the storage.
  func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(BlockError)
}
