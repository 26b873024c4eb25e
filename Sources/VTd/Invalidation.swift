import Hardware

// What the guest can take out of the unit's caches (VT-d 6.5), as values: a descriptor of the queue or
// a register-based command becomes one, the caches act on it, and observers hear of it.

/// How many of the low bits of a function number a context-cache invalidation ignores (FM).
public struct FunctionMask: RawRepresentable, Hashable, Sendable {
  /// 0: none; 1: bit 2; 2: bits 2:1; 3: bits 2:0.
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue & 3 }

  /// The bits of a source-id that still count.
  var significantBits: UInt16 {
    switch rawValue {
    case 0: 0xffff
    case 1: 0xfffb
    case 2: 0xfff9
    default: 0xfff8
    }
  }
}

/// Naturally aligned 4 KiB pages, 2 to the `addressMask` of them.
public struct PageRange: Hashable, Sendable {
  public let first: UInt64
  /// Inclusive: the range may end at the top of the address space.
  public let last: UInt64

  /// - Parameter addressMask: AM; the address bits it covers are ignored.
  public init(address: UInt64, addressMask: Int) {
    let size = addressMask >= 52 ? UInt64.max : (0x1000 &<< UInt64(max(addressMask, 0))) &- 1
    first = address & ~(size | 0xfff)
    last = first | size | 0xfff
  }

  /// The range that an IOTLB invalidation names. Address bits from MGAW up are ignored (VT-d 6.5.2.3, 6.5.2.4,
  /// 11.4.8.2).
  /// - Parameter isFirstStage: addresses are canonical, so what stands for the ignored bits is the highest bit left.
  init(address: UInt64, addressMask: Int, width: Int, isFirstStage: Bool = false) {
    guard addressMask + 12 < width else {
      self.init(address: 0, addressMask: 52)
      return
    }
    var address = address & .lowBits(width)
    if isFirstStage, address[bit: width - 1] { address |= ~.lowBits(width) }
    self.init(address: address, addressMask: addressMask)
  }

  func overlaps(first otherFirst: UInt64, last otherLast: UInt64) -> Bool { first <= otherLast && otherFirst <= last }
}

/// Something that the unit's software took out of its caches, or changed about it as a whole.
public enum Invalidation: Hashable, Sendable {
  /// Context cache (VT-d 6.5.2.1).
  case allContexts
  /// In scalable mode the same as all.
  case contextsOfDomain(UInt16)
  case contextsOfDevice(RequesterID, FunctionMask)
  /// PASID cache (6.5.2.2).
  case allPASIDs
  case pasidsOfDomain(UInt16)
  case pasid(UInt32, domain: UInt16)
  /// IOTLB (6.5.2.3). A domain's includes its first-stage and nested mappings.
  case allTranslations
  case translationsOfDomain(UInt16)
  /// Second-stage pages; `leafOnly` is the hint IH.
  case pagesOfDomain(UInt16, PageRange, leafOnly: Bool)
  /// PASID-based IOTLB (6.5.2.4): first-stage and nested mappings.
  case translationsOfPASID(UInt32, domain: UInt16)
  case pagesOfPASID(UInt32, domain: UInt16, PageRange, leafOnly: Bool)
  /// Device-TLB (6.5.2.5): what the function itself cached, requests without PASID.
  case deviceTLB(RequesterID, PageRange)
  /// PASID-based device-TLB (6.5.2.6); every PASID of the function where it is nil.
  case deviceTLBOfPASID(RequesterID, UInt32?, PageRange)
  /// Interrupt entry cache (6.5.2.7): interrupt indices.
  case interruptEntries(ClosedRange<Int>)
  /// Translation was enabled, disabled, or pointed at another root table: every binding is to be reread.
  case translationChanged
  /// Interrupt remapping was enabled, disabled, or pointed at another table: every route is to be redone.
  case interruptRemappingChanged
}

/// Whoever keeps something made from the unit's tables: interrupt routes, tables bound to a host's
/// IOMMU, a vhost device IOTLB.
public protocol InvalidationObserver: AnyObject, Sendable {
  /// Called in the order in which the guest asked, on the thread of the vCPU that rang the doorbell,
  /// with no lock of the unit held that `remap` or a translation takes. When it returns, the
  /// invalidations have taken effect: the guest's wait descriptor completes only after that.
  func invalidated(_ invalidations: [Invalidation])
}

/// Takes the interrupt requests that a device makes by a DMA write to 0xFEEx_xxxx.
public protocol MessageSink: AnyObject, Sendable {
  /// - Parameter message: as written; still to be remapped.
  func send(_ message: InterruptMessage, from requester: RequesterID)
}
