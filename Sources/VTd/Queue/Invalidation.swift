import Hardware

// Invalidations as values (VT-d 6.5). A descriptor of the queue or a register-based command becomes an `Invalidation`.
// The unit's caches act on it, and observers receive it.

/// The function number bits that a context-cache invalidation ignores (FM).
public struct FunctionMask: RawRepresentable, Hashable, Sendable {
  /// 0: none; 1: bit 2; 2: bits 2:1; 3: bits 2:0.
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue & 3 }

  func matches(_ one: RequesterID, _ other: RequesterID) -> Bool {
    (one.rawValue ^ other.rawValue) & significantBits == 0
  }

  /// The bits of a source-id that the invalidation compares.
  var significantBits: UInt16 {
    switch rawValue {
    case 0: 0xffff
    case 1: 0xfffb
    case 2: 0xfff9
    default: 0xfff8
    }
  }
}

/// A naturally aligned range of 4 KiB pages.
public struct PageRange: Hashable, Sendable {
  public let first: UInt64
  /// Inclusive, because the range may end at the top of the address space.
  public let last: UInt64

  /// - Parameter addressMask: AM: the range has 2^AM pages. Address bits below the size of the range are ignored.
  public init(address: UInt64, addressMask: Int) {
    let size = addressMask >= 52 ? UInt64.max : (0x1000 &<< UInt64(max(addressMask, 0))) &- 1
    first = address & ~(size | 0xfff)
    last = first | size | 0xfff
  }

  /// The range of an IOTLB invalidation. Address bits from MGAW up are ignored (VT-d 6.5.2.3, 6.5.2.4, 11.4.8.2).
  /// - Parameter isFirstStage: whether addresses are canonical. Then bit MGAW-1 replaces the ignored bits.
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

/// An invalidation of the unit's caches, or a change of its translation or interrupt remapping mode.
public enum Invalidation: Hashable, Sendable {
  /// Context cache (VT-d 6.5.2.1).
  case allContexts
  /// In scalable mode the invalidation is the same as `allContexts`.
  case contextsOfDomain(UInt16)
  case contextsOfDevice(RequesterID, FunctionMask)
  /// PASID cache (6.5.2.2).
  case allPASIDs
  case pasidsOfDomain(UInt16)
  case pasid(UInt32, domain: UInt16)
  /// IOTLB (6.5.2.3). `translationsOfDomain` includes first-stage and nested mappings.
  case allTranslations
  case translationsOfDomain(UInt16)
  /// Second-stage pages; `leafOnly` is the hint IH.
  case pagesOfDomain(UInt16, PageRange, leafOnly: Bool)
  /// PASID-based IOTLB (6.5.2.4): first-stage and nested mappings.
  case translationsOfPASID(UInt32, domain: UInt16)
  case pagesOfPASID(UInt32, domain: UInt16, PageRange, leafOnly: Bool)
  /// Device-TLB (6.5.2.5): the function's own cache, for requests without PASID.
  case deviceTLB(RequesterID, PageRange)
  /// PASID-based device-TLB (6.5.2.6). A nil PASID means every PASID of the function.
  case deviceTLBOfPASID(RequesterID, UInt32?, PageRange)
  /// Interrupt entry cache (6.5.2.7): interrupt indices.
  case interruptEntries(ClosedRange<Int>)
  /// Software enabled or disabled translation, or set the root table: every host binding must be read again.
  case translationChanged
  /// Software enabled or disabled interrupt remapping, or set its table: every route must be computed again.
  case interruptRemappingChanged
}

extension Invalidation {
  /// Records the trace event of the invalidation.
  /// - Returns: the counter that counts the invalidation; nil for a change of mode.
  func record(in trace: Trace?) -> TranslationCounter? {
    switch self {
    case .allContexts:
      trace?.record(.invalidateAllContexts, [])
      return .contextInvalidations
    case .contextsOfDomain(let domain):
      trace?.record(.invalidateDomainContexts, [.hex("domain", domain)])
      return .contextInvalidations
    case .contextsOfDevice(let device, let mask):
      trace?.record(.invalidateDeviceContexts, [.source(device), .hex("fmask", ~mask.significantBits)])
      return .contextInvalidations
    case .allPASIDs:
      trace?.record(.invalidateAllPASIDs, [])
      return .pasidCacheInvalidations
    case .pasidsOfDomain(let domain):
      trace?.record(.invalidateDomainPASIDs, [.hex("domain", domain)])
      return .pasidCacheInvalidations
    case .pasid(let pasid, let domain):
      trace?.record(.invalidatePASID, [.hex("domain", domain), .hex("pasid", pasid)])
      return .pasidCacheInvalidations
    case .allTranslations:
      trace?.record(.invalidateAllTranslations, [])
      return .iotlbInvalidations
    case .translationsOfDomain(let domain):
      trace?.record(.invalidateDomainTranslations, [.hex("domain", domain)])
      return .iotlbInvalidations
    case .pagesOfDomain(let domain, let pages, let leafOnly):
      trace?.record(
        .invalidateDomainPages,
        [.hex("domain", domain), .hex("addr", pages.first), .hex("last", pages.last), .flag("ih", leafOnly)])
      return .iotlbInvalidations
    case .translationsOfPASID(let pasid, let domain):
      trace?.record(.invalidatePASIDTranslations, [.hex("domain", domain), .hex("pasid", pasid)])
      return .pasidIOTLBInvalidations
    case .pagesOfPASID(let pasid, let domain, let pages, let leafOnly):
      trace?.record(
        .invalidatePASIDPages,
        [
          .hex("domain", domain), .hex("addr", pages.first), .hex("last", pages.last), .hex("pasid", pasid),
          .flag("ih", leafOnly),
        ])
      return .pasidIOTLBInvalidations
    case .deviceTLB(let device, let pages):
      trace?.record(.invalidateDeviceTLB, [.source(device), .hex("addr", pages.first), .hex("last", pages.last)])
      return .deviceTLBInvalidations
    case .deviceTLBOfPASID(let device, let pasid, let pages):
      trace?.record(
        .invalidateDeviceTLB,
        [.source(device), .hex("addr", pages.first), .hex("last", pages.last)]
          + (pasid.map { [.hex("pasid", $0)] } ?? [.word("pasid", "all")]))
      return .deviceTLBInvalidations
    case .interruptEntries(let indices):
      trace?.record(
        .invalidateInterruptEntries, [.number("index", indices.lowerBound), .number("last", indices.upperBound)])
      return .interruptEntryInvalidations
    case .translationChanged, .interruptRemappingChanged:
      return nil
    }
  }

  var subject: InvalidationSubjects {
    switch self {
    case .interruptEntries, .interruptRemappingChanged: .interruptRemapping
    default: .translation
    }
  }
}

/// The kinds of state that invalidations concern.
public struct InvalidationSubjects: OptionSet, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The translation mode, and the entries and mappings that translate DMA requests, device TLBs included.
  public static let translation = InvalidationSubjects(rawValue: 1 << 0)
  /// The interrupt remapping mode and table entries.
  public static let interruptRemapping = InvalidationSubjects(rawValue: 1 << 1)
  public static let all: InvalidationSubjects = [.translation, .interruptRemapping]
}

/// An object that keeps state derived from the unit's tables: interrupt routes, or tables bound to a host's IOMMU.
public protocol InvalidationObserver: AnyObject, Sendable {
  /// Acts on invalidations of the subjects that the observer wants, in the guest's order. The guest's wait descriptor
  /// completes after this call, so all of them must have taken effect on return.
  ///
  /// The calling thread is that of the vCPU that invalidates, or of a function whose answer resumes the queue. It holds
  /// no lock that `remap` or a translation takes.
  func invalidated(_ invalidations: [Invalidation])
}
