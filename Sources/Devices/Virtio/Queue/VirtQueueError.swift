import Hardware

/// Why a queue cannot go on. A driver that follows virtio 1.2, section 2.7, never causes one; the transport answers
/// each but `.memory(.disabled)` with DEVICE_NEEDS_RESET.
public enum VirtQueueError: Error, Hashable, Sendable {
  /// The ring itself or a descriptor table could not be reached.
  case memory(DMAError)
  /// The available index ran ahead by more than the ring holds.
  case availableIndex
  /// A head or a next field names a descriptor past the end of its table.
  case descriptorIndex
  /// More descriptors than the queue can hold: a loop, or a chain no driver may build.
  case chainLength
  /// A device-readable buffer after a device-writable one.
  case bufferOrder
  /// The buffers of a chain add up to 4 GiB or more.
  case totalLength
  /// An indirect table that was not negotiated, is empty, nested, followed by a next one, or of a fractional size.
  case indirectTable
  /// The chain is sound but is no request of this device type.
  case request
}
