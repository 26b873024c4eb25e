import Hardware

/// The walk from a head to a chain of buffers: virtio 1.2, section 2.7.5; indirect tables: section 2.7.5.3.
extension VirtQueue {
  /// A descriptor, 16 bytes: address (8), length (4), flags (2), next (2).
  private struct Descriptor {
    let address: UInt64
    let length: UInt32
    let flags: UInt16
    let next: UInt16

    /// Decodes the 16 bytes, given as two little-endian numbers.
    init(low: UInt64, high: UInt64) {
      address = low
      length = UInt32(truncatingIfNeeded: high)
      flags = UInt16(truncatingIfNeeded: high >> 32)
      next = UInt16(truncatingIfNeeded: high >> 48)
    }

    /// VIRTQ_DESC_F_NEXT
    var hasNext: Bool { flags[bit: 0] }
    /// VIRTQ_DESC_F_WRITE
    var isWritable: Bool { flags[bit: 1] }
    /// VIRTQ_DESC_F_INDIRECT
    var isIndirect: Bool { flags[bit: 2] }
  }

  /// Reads the chain that starts at `head` into `chain`.
  mutating func walk(from head: UInt16) throws(VirtQueueError) {
    chain.removeAll()
    chain.head = head
    var index = head
    var steps: UInt16 = 0
    while true {
      guard index < layout.size else { throw .descriptorIndex }
      // A chain with more descriptors than the table has is a loop.
      guard steps < layout.size else { throw .chainLength }
      steps &+= 1
      let descriptor = try descriptor(at: index)
      if descriptor.isIndirect {
        // The table ends the chain: NEXT and INDIRECT must not be set together.
        guard !descriptor.hasNext else { throw .indirectTable }
        try walkIndirect(descriptor, after: steps &- 1)
        return
      }
      try add(descriptor)
      guard descriptor.hasNext else { return }
      index = descriptor.next
    }
  }

  /// Reads the descriptors of an indirect table.
  /// - Parameter taken: the number of descriptors in the chain before the one that refers to the table.
  private mutating func walkIndirect(_ table: Descriptor, after taken: UInt16) throws(VirtQueueError) {
    guard features.contains(.indirectDescriptors) else { throw .indirectTable }
    let size = Int(table.length)
    guard size > 0, size % 16 == 0 else { throw .indirectTable }
    // A driver must not build a chain longer than the queue (2.7.5.3.1), but some drivers do. Here a fixed bound
    // suffices.
    guard size / 16 + Int(taken) <= Int(Self.sizeLimit) else { throw .chainLength }
    if indirectTable.count < size {
      indirectTable.append(contentsOf: repeatElement(0, count: size - indirectTable.count))
    }
    let port = port
    do { try port.read(from: table.address, into: &indirectTable, 0..<size) } catch { throw .memory(error) }

    let count = UInt16(truncatingIfNeeded: size / 16)
    var index: UInt16 = 0
    var steps: UInt16 = 0
    while true {
      guard index < count else { throw .descriptorIndex }
      guard steps < count else { throw .chainLength }
      steps &+= 1
      let at = 16 * Int(index)
      let descriptor = Descriptor(
        low: indirectTable.load(UInt64.self, at: at), high: indirectTable.load(UInt64.self, at: at + 8))
      guard !descriptor.isIndirect else { throw .indirectTable }
      try add(descriptor)
      guard descriptor.hasNext else { return }
      index = descriptor.next
    }
  }

  private func descriptor(at index: UInt16) throws(VirtQueueError) -> Descriptor {
    // The table is aligned to 16 bytes, so a descriptor does not cross translations.
    let address = try Self.address(layout.descriptorArea, 16 * UInt64(index))
    do {
      let (low, high) = try port.loadUInt64Pair(at: address)
      return Descriptor(low: low, high: high)
    } catch { throw .memory(error) }
  }

  private mutating func add(_ descriptor: Descriptor) throws(VirtQueueError) {
    let buffer = DescriptorChain.Buffer(address: descriptor.address, count: UInt64(descriptor.length))
    if descriptor.isWritable {
      chain.writable.append(buffer)
    } else {
      guard chain.writable.list.isEmpty else { throw .bufferOrder }
      chain.readable.append(buffer)
    }
    // A chain must not exceed 2^32 bytes (2.7.5.2), and the length in the used ring has only 32 bits.
    guard chain.readable.remaining &+ chain.writable.remaining <= UInt64(UInt32.max) else { throw .totalLength }
  }
}
