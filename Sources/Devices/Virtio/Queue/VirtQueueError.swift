import Hardware

/// The reason why a queue cannot continue. A driver that follows virtio 1.2, section 2.7, never causes one. The transport
/// sets DEVICE_NEEDS_RESET for all but `.memory(.disabled)`.
public enum VirtQueueError: Error, Hashable, Sendable {
  /// An access to a ring or a descriptor table failed.
  case memory(DMAError)
  /// The available index is ahead by more than the ring's size.
  case availableIndex
  /// A head or a next field refers to a descriptor past the end of its table.
  case descriptorIndex
  /// The chain has more descriptors than the queue: a loop, or an invalid chain.
  case chainLength
  /// A device-readable buffer follows a device-writable one.
  case bufferOrder
  /// The total size of a chain's buffers is 4 GiB or more.
  case totalLength
  /// An indirect table was not negotiated, is empty, nested, combined with NEXT, or not a multiple of 16 bytes.
  case indirectTable
  /// The chain is valid, but is not a request of this device type.
  case request
}
