import Hardware

/// The buffers of one chain in the order of its descriptors: first those that the device reads, then those that it
/// writes (virtio 1.2, 2.7.4.2). Addresses are the driver's, untranslated; the bytes are taken front to back.
public struct DescriptorChain: Sendable {
  /// Bytes at a run of the device's address space.
  struct Buffer: Sendable {
    var address: UInt64
    /// In bytes, not zero.
    var count: UInt64
  }

  /// Buffers of one direction, and how far they have been taken.
  public struct Buffers: Sendable {
    var list: [Buffer] = []
    /// Index into `list` of what comes next; `list.count` at the end.
    var next = 0
    /// Bytes not yet taken.
    public internal(set) var remaining: UInt64 = 0

    mutating func removeAll() {
      list.removeAll(keepingCapacity: true)
      next = 0
      remaining = 0
    }

    mutating func append(_ buffer: Buffer) {
      guard buffer.count > 0 else { return }
      list.append(buffer)
      remaining &+= buffer.count
    }

    /// The next bytes that lie in one buffer, at most `count` of them; nil at the end.
    /// - Throws: where the buffer runs over the top of the address space; nothing of it is taken then.
    func peek(upTo count: UInt64) throws(DMAError) -> Buffer? {
      guard next < list.count, count > 0 else { return nil }
      try checkTransfer(at: list[next].address, count: list[next].count)
      return Buffer(address: list[next].address, count: min(count, list[next].count))
    }

    /// Takes bytes that were just peeked at.
    mutating func advance(by count: UInt64) {
      list[next].address &+= count
      list[next].count &-= count
      remaining &-= count
      if list[next].count == 0 { next += 1 }
    }

    /// Takes the last byte and returns its address; nil where nothing is left.
    /// - Throws: where the buffer that it is in runs over the top of the address space.
    mutating func takeLastByte() throws(DMAError) -> UInt64? {
      guard next < list.count, var last = list.popLast() else { return nil }
      try checkTransfer(at: last.address, count: last.count)
      last.count &-= 1
      remaining &-= 1
      if last.count > 0 { list.append(last) }
      return last.address &+ last.count
    }
  }

  /// Index of the first descriptor: the chain's name in the used ring.
  public internal(set) var head: UInt16 = 0
  /// Device-readable.
  public internal(set) var readable = Buffers()
  /// Device-writable.
  public internal(set) var writable = Buffers()

  mutating func removeAll() {
    readable.removeAll()
    writable.removeAll()
  }
}
