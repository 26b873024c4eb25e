import Hardware

// The translation of a remote IOTLB's miss: one mapping that covers as much as the tables allow. The unit reads the
// tables for each miss and caches nothing, because the remote caches the answer.

/// A miss that gets no mapping.
enum RemoteRefusal: Error {
  case fault(FaultReason)
  /// The address is in the interrupt address range. A remote makes no interrupt requests.
  case interruptAddress
}

struct RemoteWalk {
  let rules: WalkRules
  let memory: any PhysicalMemory
  /// The same memory without updates.
  let frozen: FrozenMemory
  /// See `RemoteIOTLB.asksAgainToWrite`.
  let asksAgainToWrite: Bool

  /// An answer may cover up to 64 neighbouring pages of 4 KiB, within an aligned range of 256 KiB. A round trip to a
  /// remote costs more than the walks for these pages, and drivers map buffers of many pages. A longer range would lose
  /// more with each page that the guest unmaps.
  static let joinedBytes: UInt64 = 64 << 12

  /// Returns the identity mapping around an address, up to the interrupt address range.
  /// - Parameter last: the last address that the unit passes.
  func identity(_ address: UInt64, last: UInt64) -> RemoteMapping {
    let interrupts = WalkRules.interruptAddresses
    let range =
      address < interrupts.lowerBound
      ? DMARange(first: 0, last: min(last, interrupts.lowerBound - 1))
      : DMARange(first: interrupts.upperBound + 1, last: last)
    return RemoteMapping(range: range, physicalAddress: range.first, isReadable: true, isWritable: true)
  }

  /// Translates an address outside the interrupt address range through paging tables.
  /// - Throws: the fault condition that a request of the function meets.
  func mapping(
    _ address: UInt64, for access: DMAAccess, through path: TranslationPath, in mode: TranslationMode
  ) throws(FaultReason) -> RemoteMapping {
    var page = try path.walk(address, for: access, rules: rules, memory: memory)
    let output = page.address(of: address)
    if WalkRules.isInterruptAddress(output) { throw mode.interruptAddressFault }
    if !asksAgainToWrite, !page.writable, page.readable,
      let writable = try? path.walk(address, for: .write, rules: rules, memory: memory),
      writable.address(of: address) == output, writable.readable
    {
      page = writable
    }
    return joined(page, around: address, path)
  }

  /// Extends the mapping of a page to its neighbours.
  private func joined(_ page: Mapping, around address: UInt64, _ path: TranslationPath) -> RemoteMapping {
    let mask = page.offsetMask
    let output = page.address(of: address)
    if mask >= Self.joinedBytes, !touchesInterrupts(address, mask), !touchesInterrupts(output, mask) {
      return RemoteMapping(
        range: DMARange(first: address & ~mask, last: address | mask), physicalAddress: output & ~mask,
        isReadable: page.readable, isWritable: page.writable)
    }
    var first = address & ~0xfff
    var last = address | 0xfff
    let window = DMARange(first: address & ~(Self.joinedBytes - 1), last: address | (Self.joinedBytes - 1))
    /// Whether the page at an address has the same rights, and continues the physical range.
    func continues(at neighbour: UInt64) -> Bool {
      guard page.readable, !WalkRules.isInterruptAddress(neighbour), page.writable || isReadOnly(neighbour),
        // Frozen memory: the walk must not set the accessed bit of a page that the remote did not ask for.
        let found = try? path.walk(neighbour, for: .read, rules: rules, memory: frozen)
      else { return false }
      let expected = output & ~0xfff &+ (neighbour &- address & ~0xfff)
      return found.address(of: neighbour) == expected && !WalkRules.isInterruptAddress(expected)
        && found.readable && found.writable == page.writable
    }
    /// Whether a page is really read-only. A clean page looks like it, but the remote would not ask again to write.
    func isReadOnly(_ neighbour: UInt64) -> Bool {
      if asksAgainToWrite { return true }
      do throws(FaultReason) {
        _ = try path.walk(neighbour, for: .write, rules: rules, memory: frozen)
        return false
      } catch {
        return error == .writePermission || error == .scalableWritePermission
      }
    }
    while last < window.last, continues(at: last + 1) { last += 0x1000 }
    while first > window.first, continues(at: first - 0x1000) { first -= 0x1000 }
    return RemoteMapping(
      range: DMARange(first: first, last: last), physicalAddress: output & ~0xfff &- (address & ~0xfff &- first),
      isReadable: page.readable, isWritable: page.writable)
  }

  private func touchesInterrupts(_ address: UInt64, _ mask: UInt64) -> Bool {
    WalkRules.interruptAddresses.overlaps(address & ~mask...address | mask)
  }
}

extension TranslationPath {
  /// Walks the paging tables.
  fileprivate func walk(
    _ address: UInt64, for access: DMAAccess, rules: WalkRules, memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping {
    switch self {
    case .first(let table, _): try table.walk(address, for: access, rules: rules, memory: memory)
    case .second(let table, _): try table.walk(address, for: access, rules: rules, memory: memory)
    case .unknown, .passThrough: throw .pasidEntryInvalid  // They have no paging tables.
    }
  }
}

/// Memory whose entries a walk reads but cannot mark: a walk that would set an accessed or dirty bit fails.
final class FrozenMemory: PhysicalMemory {
  private let memory: any PhysicalMemory

  init(_ memory: any PhysicalMemory) { self.memory = memory }

  func loadUInt16(at address: UInt64) -> UInt16? { memory.loadUInt16(at: address) }
  func loadUInt32(at address: UInt64) -> UInt32? { memory.loadUInt32(at: address) }
  func loadUInt64(at address: UInt64) -> UInt64? { memory.loadUInt64(at: address) }
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { false }
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool { false }
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { false }
  func walkTables(
    _ input: UInt64, from table: UInt64, level: Int, mustHave: UInt64, mustNotHave: UInt64
  ) -> PagingPosition {
    memory.walkTables(input, from: table, level: level, mustHave: mustHave, mustNotHave: mustNotHave)
  }
  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? { nil }
  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool { memory.read(from: address, into: &bytes) }
  func write(_ bytes: RawSpan, to address: UInt64) -> Bool { false }
  func contains(_ address: UInt64, count: UInt64) -> Bool { memory.contains(address, count: count) }
}
