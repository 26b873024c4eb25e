import Linux
import Vhost

/// A driver's side of one split virtqueue in guest memory: virtio 1.2, section 2.7. Buffer N belongs to descriptor N.
package final class TestRing {
  package static let size: UInt16 = 16

  private let memory: GuestMemory
  private let base: UInt64
  /// The difference from guest physical addresses to those that the device uses.
  private let offset: UInt64
  private let bufferSize: UInt64
  private var available: UInt16 = 0
  package let kick: EventDescriptor
  package let call: EventDescriptor
  package let error: EventDescriptor

  /// - Parameters:
  ///   - base: of the rings and, from the next 64 KiB on, the buffers.
  ///   - bufferSize: in bytes.
  package init(_ memory: GuestMemory, at base: UInt64, offset: UInt64 = 0, bufferSize: UInt64 = 2048) throws {
    self.memory = memory
    self.base = base
    self.offset = offset
    self.bufferSize = bufferSize
    kick = try EventDescriptor()
    call = try EventDescriptor()
    error = try EventDescriptor()
  }

  package var descriptors: UInt64 { base }
  package var availableRing: UInt64 { base + 0x1000 }
  package var usedRing: UInt64 { base + 0x2000 }
  package func buffer(_ index: UInt16) -> UInt64 { base + 0x1_0000 + bufferSize * UInt64(index) }

  /// Returns the ring as vhost needs it: with addresses of this process if there is no offset.
  package func ring(_ number: UInt32, start: UInt16 = 0) -> VhostNet.Ring {
    var addresses = (base + offset, availableRing + offset, usedRing + offset)
    if offset == 0 {
      let host = HostRing(size: Self.size, descriptors: base, available: availableRing, used: usedRing, in: memory)
      guard let host else { preconditionFailure("the ring is not in RAM") }
      addresses = (host.descriptors, host.available, host.used)
    }
    return VhostNet.Ring(
      number: number, size: Self.size, descriptors: addresses.0, available: addresses.1, used: addresses.2,
      start: start, kick: kick.rawValue, call: call.rawValue, error: error.rawValue)
  }

  /// Empties the rings. The device does not serve them.
  package func reset() {
    available = 0
    for ring in [availableRing, usedRing] { _ = memory.storeUInt32(0, at: ring) }
  }

  /// Makes a buffer available, and notifies the device.
  package func submit(_ index: UInt16, count: Int, isWritable: Bool) {
    let descriptor = base + 16 * UInt64(index)
    _ = memory.storeUInt64(buffer(index) + offset, at: descriptor)
    _ = memory.storeUInt32(UInt32(count), at: descriptor + 8)
    // VIRTQ_DESC_F_WRITE
    _ = memory.storeUInt16(isWritable ? 2 : 0, at: descriptor + 12)
    _ = memory.storeUInt16(index, at: availableRing + 4 + 2 * UInt64(available % Self.size))
    available &+= 1
    _ = memory.storeUInt16(available, at: availableRing + 2)
    kick.signal()
  }

  package func fill(_ index: UInt16, _ bytes: [UInt8]) { _ = memory.write(bytes.span.bytes, to: buffer(index)) }

  /// Returns whether the device has interrupted the driver since the last call.
  package func takeCall() -> Bool { call.take() }
  /// Returns whether the device has found an invalid descriptor since the last call.
  package func takeError() -> Bool { error.take() }

  /// The number of used buffers.
  package var used: UInt16 { memory.loadUInt16(at: usedRing + 2) ?? 0 }

  /// The buffer of a used ring's entry, and the number of bytes that the device has written.
  package func usedEntry(_ entry: UInt16) -> (index: UInt16, count: Int) {
    let at = usedRing + 4 + 8 * UInt64(entry % Self.size)
    let index = UInt16(truncatingIfNeeded: memory.loadUInt32(at: at) ?? 0) % Self.size
    return (index, Int(min(UInt64(memory.loadUInt32(at: at + 4) ?? 0), bufferSize)))
  }

  /// The bytes of the buffer of a used ring's entry.
  package func received(_ entry: UInt16) -> [UInt8] {
    let (index, count) = usedEntry(entry)
    return contents(of: index, count: count)
  }

  /// The first bytes of a buffer.
  package func contents(of index: UInt16, count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    _ = memory.read(from: buffer(index), into: &raw)
    return bytes
  }
}
