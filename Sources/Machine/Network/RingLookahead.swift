import Devices
import Hardware
import Linux

/// Finds the buffers that the kernel's vhost will soon access in a ring, so that their translations reach the kernel
/// before it stops and asks for each: the chains of a split virtqueue that the driver has made available and the kernel
/// has not used yet (virtio 1.2, section 2.7).
///
/// Everything here is a guess. The guest may change the ring at any time, and a value that makes no sense ends the
/// search: the kernel finds the error itself. Only the loop's thread searches.
struct RingLookahead {
  struct Buffer: Equatable {
    /// As the descriptor has it. An indirect table is a buffer that the device reads.
    var address: UInt64
    /// In bytes.
    var count: UInt32
    var isWritten: Bool

    /// - Parameter flags: bit 1: the device writes; bit 2: the buffer is an indirect table.
    fileprivate init(_ address: UInt64, _ count: UInt32, flags: UInt64) {
      self.address = address
      self.count = count
      isWritten = flags & 6 == 2
    }
  }

  /// The most chains and the most descriptors of one search. A chain of one packet may have some dozens.
  private static let chainLimit = 64
  private static let descriptorLimit = 128
  /// The most indirect tables of one search.
  private static let tableLimit = 16
  private static let descriptorSize: UInt64 = 16

  let layout: VirtQueue.Layout
  /// The buffers that the last search found.
  private(set) var buffers: [Buffer] = []
  private var heads: [UInt16] = []
  private var tables: [Buffer] = []
  /// The index in the available ring after the last chain that a search has found; nil at first.
  private var next: UInt16?
  /// The losses that the last search knew.
  private var losses: UInt64 = 0

  init(_ layout: VirtQueue.Layout) {
    self.layout = layout
    buffers.reserveCapacity(Self.descriptorLimit)
    heads.reserveCapacity(Self.chainLimit)
    tables.reserveCapacity(Self.tableLimit)
  }

  /// Searches for the next chains after those that the searches before have found.
  /// - Parameters:
  ///   - port: translates the addresses of the ring. A refusal is no fault of the device.
  ///   - losses: how often the kernel has lost translations. After a loss, the search begins with the first chain that
  ///     the kernel has not used.
  mutating func search(_ memory: GuestMemory, through port: any RemoteDMAPort, losses: UInt64) {
    if losses != self.losses { next = nil }
    self.losses = losses
    buffers.removeAll(keepingCapacity: true)
    heads.removeAll(keepingCapacity: true)
    tables.removeAll(keepingCapacity: true)
    guard let used = index(of: layout.deviceArea, memory, port),
      let available = index(of: layout.driverArea, memory, port), available &- used <= layout.size
    else { return }
    var first = used
    // The driver may have started anew, so `next` may lie outside of the pending chains.
    if let next, next &- used <= available &- used { first = next }
    readHeads(from: first, to: available, memory, port)
    readChains(memory, port)
    for table in tables { read(table, memory, port) }
    next = first &+ UInt16(truncatingIfNeeded: heads.count)
  }

  /// Loads the index of the available or of the used ring: both are after 16 bits of flags.
  private func index(of area: UInt64, _ memory: GuestMemory, _ port: any RemoteDMAPort) -> UInt16? {
    var value: UInt16?
    try? port.translate(area &+ 2, for: .read, recordsFault: false) { mapping in
      value = mapping.physicalAddress(of: area &+ 2, count: 2).flatMap { memory.loadUInt16(at: $0) }
    }
    return value
  }

  private mutating func readHeads(
    from first: UInt16, to available: UInt16, _ memory: GuestMemory, _ port: any RemoteDMAPort
  ) {
    let count = min(Int(available &- first), Self.chainLimit)
    var isProgressing = true
    while heads.count < count, isProgressing {
      let before = heads.count
      try? port.translate(headAddress(first, heads.count), for: .read, recordsFault: false) { mapping in
        while heads.count < count,
          let address = mapping.physicalAddress(of: headAddress(first, heads.count), count: 2),
          let head = memory.loadUInt16(at: address)
        {
          heads.append(head)
        }
      }
      isProgressing = heads.count > before
    }
  }

  private func headAddress(_ first: UInt16, _ offset: Int) -> UInt64 {
    let slot = (first &+ UInt16(truncatingIfNeeded: offset)) & (layout.size &- 1)
    return layout.driverArea &+ 4 &+ 2 &* UInt64(slot)
  }

  private mutating func readChains(_ memory: GuestMemory, _ port: any RemoteDMAPort) {
    var chain = 0
    var following: UInt16?
    var isProgressing = true
    while chain < heads.count, buffers.count < Self.descriptorLimit, isProgressing {
      let before = buffers.count
      try? port.translate(descriptorAddress(following ?? heads[chain]), for: .read, recordsFault: false) { mapping in
        while chain < heads.count, buffers.count < Self.descriptorLimit {
          let index = following ?? heads[chain]
          guard index < layout.size, let (buffer, rest) = descriptor(at: descriptorAddress(index), in: mapping, memory)
          else { return }
          buffers.append(buffer)
          // Bit 0: another descriptor follows; bit 2: the buffer is an indirect table.
          if rest >> 34 & 1 != 0, tables.count < Self.tableLimit { tables.append(buffer) }
          following = rest >> 32 & 5 == 1 ? UInt16(truncatingIfNeeded: rest >> 48) : nil
          if following == nil { chain += 1 }
        }
      }
      isProgressing = buffers.count > before
    }
    // The rest is found by the next search.
    heads.removeLast(heads.count - chain)
  }

  /// Adds the buffers of an indirect table, which drivers fill in order.
  private mutating func read(_ table: Buffer, _ memory: GuestMemory, _ port: any RemoteDMAPort) {
    try? port.translate(table.address, for: .read, recordsFault: false) { mapping in
      var offset: UInt64 = 0
      while offset < UInt64(table.count), buffers.count < Self.descriptorLimit,
        let (buffer, _) = descriptor(at: table.address &+ offset, in: mapping, memory)
      {
        buffers.append(buffer)
        offset += Self.descriptorSize
      }
    }
  }

  /// Loads a descriptor.
  /// - Returns: its buffer, and its bytes from the eighth on: the size (32 bits), the flags (16) and the next index (16).
  private func descriptor(
    at address: UInt64, in mapping: RemoteMapping, _ memory: GuestMemory
  ) -> (Buffer, rest: UInt64)? {
    guard let physical = mapping.physicalAddress(of: address, count: Self.descriptorSize),
      let target = memory.loadUInt64(at: physical), let rest = memory.loadUInt64(at: physical &+ 8)
    else { return nil }
    return (Buffer(target, UInt32(truncatingIfNeeded: rest), flags: rest >> 32), rest)
  }

  private func descriptorAddress(_ index: UInt16) -> UInt64 {
    layout.descriptorArea &+ Self.descriptorSize &* UInt64(index)
  }
}

extension RemoteMapping {
  /// Returns the guest physical address of a DMA address; nil if the mapping does not cover all bytes.
  fileprivate func physicalAddress(of address: UInt64, count: UInt64) -> UInt64? {
    let (last, overflow) = address.addingReportingOverflow(count &- 1)
    guard !overflow, range.contains(address), range.contains(last) else { return nil }
    return physicalAddress &+ (address &- range.first)
  }
}
