import Devices
import Hardware
import Linux
import Synchronization
import Testing

@testable import Machine

/// A ring of eight descriptors, whose three areas lie in pages of their own.
@Suite struct RingLookaheadTests {
  /// A unit that maps each page from `base` on to physical addresses from zero on, except one.
  private final class Port: RemoteDMAPort {
    static let base: UInt64 = 0x7_0000_0000
    let inFlight = RequestsInFlight()
    let refused = Mutex<UInt64?>(nil)
    var isConnected: Bool { true }
    func translate(
      _ address: UInt64, for access: DMAAccess, recordsFault: Bool, _ install: (RemoteMapping) -> Void
    ) throws(DMAError) {
      #expect(!recordsFault)
      guard address >= Self.base, refused.withLock({ $0 }) != address & ~0xfff else { throw .translation }
      let page = address & ~0xfff
      install(
        RemoteMapping(
          range: DMARange(first: page, last: page + 0xfff), physicalAddress: page - Self.base, isReadable: true,
          isWritable: true))
    }
    func complete(_ number: UInt64) {}
    func forgetAll() {}
    func noteUnclaimed() {}
    func disconnect() {}
  }

  private let port = Port()
  private let memory: GuestMemory
  private let layout = VirtQueue.Layout(
    size: 8, descriptorArea: Port.base + 0x1000, driverArea: Port.base + 0x2000, deviceArea: Port.base + 0x3000)
  private var lookahead: RingLookahead
  private var losses: UInt64 = 0

  init() throws {
    memory = try GuestMemory(size: 1 << 20, lowLimit: 1 << 20)
    lookahead = RingLookahead(layout)
  }

  /// - Parameter flags: 1 if `next` follows, 2 if the device writes, 4 for an indirect table.
  private func describe(_ index: UInt64, _ address: UInt64, _ count: UInt64, flags: UInt64 = 2, next: UInt64 = 0) {
    _ = memory.storeUInt64(address, at: 0x1000 + 16 * index)
    _ = memory.storeUInt64(count | flags << 32 | next << 48, at: 0x1008 + 16 * index)
  }

  private func offer(_ heads: [UInt16], from first: UInt16 = 0) {
    for (offset, head) in heads.enumerated() {
      _ = memory.storeUInt16(head, at: 0x2004 + 2 * UInt64((first &+ UInt16(offset)) & 7))
    }
    _ = memory.storeUInt16(first &+ UInt16(heads.count), at: 0x2002)
  }

  private func use(_ index: UInt16) { _ = memory.storeUInt16(index, at: 0x3002) }

  private mutating func found() -> [UInt64] {
    lookahead.search(memory, through: port, losses: losses)
    return lookahead.buffers.map(\.address)
  }

  @Test mutating func `the buffers of each available chain are found once`() {
    describe(0, 0xa000, 1500)
    describe(1, 0xb000, 12, flags: 1, next: 2)
    describe(2, 0xc000, 64, flags: 0)
    offer([0, 1])
    #expect(found() == [0xa000, 0xb000, 0xc000])
    #expect(lookahead.buffers.map(\.isWritten) == [true, false, false])
    #expect(lookahead.buffers.map(\.count) == [1500, 12, 64])
    #expect(found() == [])
    losses += 1
    use(1)
    #expect(found() == [0xb000, 0xc000])
  }

  @Test mutating func `the buffers of an indirect table follow the table`() {
    describe(0, Port.base + 0xd000, 32, flags: 4)
    _ = memory.storeUInt64(0xa000, at: 0xd000)
    _ = memory.storeUInt64(12 | 1 << 32 | 1 << 48, at: 0xd008)
    _ = memory.storeUInt64(0xb000, at: 0xd010)
    _ = memory.storeUInt64(1500 | 2 << 32, at: 0xd018)
    offer([0])
    #expect(found() == [Port.base + 0xd000, 0xa000, 0xb000])
    #expect(lookahead.buffers.map(\.isWritten) == [false, false, true])
    #expect(lookahead.buffers.map(\.count) == [32, 12, 1500])
    // A table that the unit refuses.
    losses += 1
    port.refused.withLock { $0 = Port.base + 0xd000 }
    #expect(found() == [Port.base + 0xd000])
    // A table of 4 GiB.
    losses += 1
    port.refused.withLock { $0 = nil }
    describe(0, Port.base + 0xd000, 0xffff_ffff, flags: 4)
    #expect(found().count == 128)
  }

  @Test mutating func `the indexes wrap around`() {
    for index in 0..<8 as Range<UInt64> { describe(index, 0xa000 + index << 12, 1500) }
    use(0xfffe)
    offer([6, 7, 0], from: 0xfffe)
    #expect(found() == [0x1_0000, 0x1_1000, 0xa000])
  }

  @Test mutating func `a new ring begins with its first chain`() {
    describe(0, 0xa000, 1500)
    use(4)
    offer([0], from: 4)
    #expect(found() == [0xa000])
    use(0)
    offer([0])
    #expect(found() == [0xa000])
  }

  @Test mutating func `values that make no sense end the search`() {
    describe(0, 0xa000, 1500)
    describe(1, 0xb000, 1500, flags: 3, next: 1)
    describe(2, 0xc000, 1500, flags: 3, next: 8)
    // More chains than descriptors.
    offer([0])
    use(2)
    #expect(found() == [])
    use(0)
    // A head outside of the table.
    offer([0, 8, 0])
    #expect(found() == [0xa000])
    // A chain that leads outside of the table.
    losses += 1
    offer([2, 0])
    #expect(found() == [0xc000])
    // A chain without an end.
    losses += 1
    offer([1])
    #expect(found() == [UInt64](repeating: 0xb000, count: 128))
  }

  @Test(arguments: [0x1000, 0x2000, 0x3000] as [UInt64])
  mutating func `an area that the unit refuses ends the search`(area: UInt64) {
    describe(0, 0xa000, 1500)
    offer([0])
    port.refused.withLock { $0 = Port.base + area }
    #expect(found() == [])
    port.refused.withLock { $0 = nil }
    #expect(found() == [0xa000])
  }
}
