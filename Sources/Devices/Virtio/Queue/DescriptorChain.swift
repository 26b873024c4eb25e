import Hardware

/// The buffers of one chain in the order of its descriptors: first those that the device reads, then those that it
/// writes (virtio 1.2, section 2.7.4.2). Addresses are the driver's, untranslated. The device takes the bytes from
/// front to back.
public struct DescriptorChain: Sendable {
  /// A range of the device's address space.
  struct Buffer: Sendable {
    var address: UInt64
    /// The size in bytes, not zero.
    var count: UInt64
  }

  /// The buffers of one direction, and the position up to which the device has taken them.
  public struct Buffers: Sendable {
    var list: [Buffer] = []
    /// The index in `list` of the next buffer; `list.count` at the end.
    var next = 0
    /// The number of bytes not yet taken.
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

    /// Returns the next bytes that lie in one buffer, at most `count`; nil at the end.
    /// - Throws: if the buffer wraps past the top of the address space. The device takes no bytes of such a buffer.
    func peek(upTo count: UInt64) throws(DMAError) -> Buffer? {
      guard next < list.count, count > 0 else { return nil }
      try checkTransfer(at: list[next].address, count: list[next].count)
      return Buffer(address: list[next].address, count: min(count, list[next].count))
    }

    /// Takes bytes that `peek` returned.
    mutating func advance(by count: UInt64) {
      list[next].address &+= count
      list[next].count &-= count
      remaining &-= count
      if list[next].count == 0 { next += 1 }
    }

    /// Returns the address of a byte that the device has not taken; nil past the end.
    /// - Parameter offset: counts from the next byte.
    func address(ofByte offset: UInt64) -> UInt64? {
      var offset = offset
      for buffer in list[next...] {
        if offset < buffer.count { return buffer.address &+ offset }
        offset &-= buffer.count
      }
      return nil
    }

    /// Takes the last byte and returns its address; nil if no bytes are left.
    /// - Throws: if the last buffer wraps past the top of the address space.
    mutating func takeLastByte() throws(DMAError) -> UInt64? {
      guard next < list.count, var last = list.popLast() else { return nil }
      try checkTransfer(at: last.address, count: last.count)
      last.count &-= 1
      remaining &-= 1
      if last.count > 0 { list.append(last) }
      return last.address &+ last.count
    }
  }

  /// The index of the first descriptor, which identifies the chain in the used ring.
  public internal(set) var head: UInt16 = 0
  /// The device-readable buffers.
  public internal(set) var readable = Buffers()
  /// The device-writable buffers.
  public internal(set) var writable = Buffers()

  mutating func removeAll() {
    readable.removeAll()
    writable.removeAll()
  }
}
