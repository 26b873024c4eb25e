import Hardware

// Descriptors of the invalidation queue (VT-d 6.5.2): one type for each, with its bits and its meaning.
//
// The article AddingADescriptor of the documentation lists the places that a new descriptor changes.

/// A decoded descriptor.
enum Descriptor: Hashable, Sendable {
  case invalidate(Invalidation)
  case wait(InvalidationWait)
  case respond(PageGroupResponse, to: RequesterID)

  static func decode(
    _ bits: DescriptorBits, tableMode: TranslationMode.TableMode, capabilities: Capabilities
  ) throws(QueueError) -> Descriptor {
    @inline(__always)
    func decode<Format: DescriptorFormat>(_: Format.Type) throws(QueueError) -> Descriptor {
      guard Format.isValid(isScalable: tableMode == .scalable, capabilities) else { throw .invalidDescriptorType }
      guard bits.low & Format.reserved.low == 0, bits.high & Format.reserved.high == 0, bits.upper == 0 else {
        throw .reservedField
      }
      return try Format(bits: bits).decoded(capabilities)
    }
    return switch bits.type {
    case ContextCacheInvalidate.type: try decode(ContextCacheInvalidate.self)
    case IOTLBInvalidate.type: try decode(IOTLBInvalidate.self)
    case DeviceTLBInvalidate.type: try decode(DeviceTLBInvalidate.self)
    case InterruptEntryCacheInvalidate.type: try decode(InterruptEntryCacheInvalidate.self)
    case InvalidationWait.type: try decode(InvalidationWait.self)
    case PASIDIOTLBInvalidate.type: try decode(PASIDIOTLBInvalidate.self)
    case PASIDCacheInvalidate.type: try decode(PASIDCacheInvalidate.self)
    case PASIDDeviceTLBInvalidate.type: try decode(PASIDDeviceTLBInvalidate.self)
    case PageGroupResponseDescriptor.type: try decode(PageGroupResponseDescriptor.self)
    default: throw .invalidDescriptorType
    }
  }
}

/// The 128 or 256 raw bits of a descriptor, with the fields that several types have in the same place.
struct DescriptorBits: Hashable, Sendable {
  var low: UInt64
  var high: UInt64
  /// The second 128 bits of a 256-bit descriptor, reserved in every supported type.
  var upper: UInt64 = 0

  /// The type: bits 11:9 and 3:0.
  var type: UInt64 { low[bits: 0...3] | low[bits: 9...11] << 4 }
  var granularity: UInt64 { low[bits: 4...5] }  // G
  var domain: UInt16 { UInt16(truncatingIfNeeded: low >> 16) }  // DID
  var pasid: UInt32 { UInt32(truncatingIfNeeded: low[bits: 32...51]) }
  var addressMask: Int { Int(high[bits: 0...5]) }  // AM
  var leafOnly: Bool { high[bit: 6] }  // IH

  /// The pages of an IOTLB invalidation.
  func pages(_ capabilities: Capabilities, isFirstStage: Bool) -> PageRange {
    PageRange(
      address: high, addressMask: addressMask, width: capabilities.maximumGuestAddressWidth, isFirstStage: isFirstStage)
  }

  /// The pages of a device-TLB invalidation, encoded as in ATS: with S set, the lowest zero bit from bit 12 up encodes
  /// the size.
  func devicePages(isSized: Bool) -> PageRange {
    let address = high & ~0xfff
    guard isSized else { return PageRange(address: address, addressMask: 0) }
    return PageRange(address: address, addressMask: (~(address >> 12)).trailingZeroBitCount + 1)
  }
}

/// A descriptor type.
protocol DescriptorFormat {
  static var type: UInt64 { get }
  /// Reserved bits of the low and high 64 bits.
  static var reserved: (low: UInt64, high: UInt64) { get }
  /// Returns whether software may use the type in this mode (VT-d table 23, "List of Valid Descriptor Types for Each
  /// Operating Mode").
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool
  init(bits: DescriptorBits)
  func decoded(_ capabilities: Capabilities) throws(QueueError) -> Descriptor
}

extension DescriptorFormat {
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { true }
}

/// Granularity of a context-cache or IOTLB invalidation, in descriptors and in registers (CIRG, IIRG).
enum InvalidationGranularity: UInt64 {
  case global = 1
  case domain = 2
  /// One device's context entries, or some pages of a domain.
  case selective = 3
}

/// Context-cache invalidate descriptor (VT-d 6.5.2.1).
struct ContextCacheInvalidate: DescriptorFormat {
  static var type: UInt64 { 1 }
  static var reserved: (low: UInt64, high: UInt64) { (0xfffc_0000_0000_f1c0, .max) }

  let bits: DescriptorBits
  var source: RequesterID { RequesterID(rawValue: UInt16(truncatingIfNeeded: bits.low >> 32)) }  // SID
  var functionMask: FunctionMask { FunctionMask(rawValue: UInt8(truncatingIfNeeded: bits.low[bits: 48...49])) }  // FM

  func decoded(_ capabilities: Capabilities) throws(QueueError) -> Descriptor {
    switch InvalidationGranularity(rawValue: bits.granularity) {
    case .global: .invalidate(.allContexts)
    case .domain: .invalidate(.contextsOfDomain(bits.domain))
    case .selective: .invalidate(.contextsOfDevice(source, functionMask))
    case nil: throw .reservedField
    }
  }
}

/// IOTLB invalidate descriptor (VT-d 6.5.2.3).
struct IOTLBInvalidate: DescriptorFormat {
  static var type: UInt64 { 2 }
  static var reserved: (low: UInt64, high: UInt64) { (0xffff_ffff_0000_f100, 0xf80) }

  let bits: DescriptorBits

  func decoded(_ capabilities: Capabilities) throws(QueueError) -> Descriptor {
    switch InvalidationGranularity(rawValue: bits.granularity) {
    case .global: return .invalidate(.allTranslations)
    case .domain: return .invalidate(.translationsOfDomain(bits.domain))
    case .selective:
      guard bits.addressMask <= Capabilities.maximumAddressMask else { throw .reservedField }
      let pages = bits.pages(capabilities, isFirstStage: false)
      return .invalidate(.pagesOfDomain(bits.domain, pages, leafOnly: bits.leafOnly))
    case nil: throw .reservedField
    }
  }
}

/// Device-TLB invalidate descriptor (VT-d 6.5.2.5). ECAP.DIT is clear, so PFSID is reserved.
struct DeviceTLBInvalidate: DescriptorFormat {
  static var type: UInt64 { 3 }
  static var reserved: (low: UInt64, high: UInt64) { (0xffff_0000_ffe0_f1f0, 0xffe) }
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { unit.deviceTLB }

  let bits: DescriptorBits
  var source: RequesterID { RequesterID(rawValue: UInt16(truncatingIfNeeded: bits.low >> 32)) }  // SID
  var isSized: Bool { bits.high[bit: 0] }  // S

  func decoded(_ capabilities: Capabilities) -> Descriptor {
    .invalidate(.deviceTLB(source, bits.devicePages(isSized: isSized)))
  }
}

/// Interrupt entry cache invalidate descriptor (VT-d 6.5.2.7).
struct InterruptEntryCacheInvalidate: DescriptorFormat {
  static var type: UInt64 { 4 }
  static var reserved: (low: UInt64, high: UInt64) { (0xffff_0000_07ff_f1e0, .max) }
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { unit.interruptRemapping }

  let bits: DescriptorBits
  var isSelective: Bool { bits.low[bit: 4] }  // G
  var index: Int { Int(bits.low[bits: 32...47]) }  // IIDX
  /// 2 to the power of IM.
  var count: Int { 1 << min(Int(bits.low[bits: 27...31]), 16) }

  func decoded(_ capabilities: Capabilities) -> Descriptor {
    guard isSelective else { return .invalidate(.interruptEntries(0...0xffff)) }
    let first = index & ~(count - 1)
    return .invalidate(.interruptEntries(first...first + count - 1))
  }
}

/// Invalidation wait descriptor (VT-d 6.5.2.8). The unit executes descriptors in order, so the fence flag (FN) needs no
/// action.
struct InvalidationWait: DescriptorFormat, Hashable, Sendable {
  static var type: UInt64 { 5 }
  static var reserved: (low: UInt64, high: UInt64) { (0x0000_0000_ffff_f100, 0x3) }

  let bits: DescriptorBits
  /// Completion raises the invalidation event (IF).
  var interrupts: Bool { bits.low[bit: 4] }
  /// Completion writes `statusData` to `statusAddress` (SW).
  var writesStatus: Bool { bits.low[bit: 5] }
  /// PD: before the next fetch, earlier page requests enter the queue and responses reach their functions.
  var drainsPageRequests: Bool { bits.low[bit: 7] }
  var statusData: UInt32 { UInt32(truncatingIfNeeded: bits.low >> 32) }
  var statusAddress: UInt64 { bits.high & ~3 }

  func decoded(_ capabilities: Capabilities) throws(QueueError) -> Descriptor {
    guard !drainsPageRequests || capabilities.pageRequestDrain else { throw .reservedField }
    return .wait(self)
  }
}

/// PASID-based IOTLB invalidate descriptor (VT-d 6.5.2.4).
struct PASIDIOTLBInvalidate: DescriptorFormat {
  static var type: UInt64 { 6 }
  static var reserved: (low: UInt64, high: UInt64) { (0xfff0_0000_0000_f1c0, 0xf80) }
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { isScalable }

  enum Granularity: UInt64 {
    case pasid = 2
    case pages = 3
  }

  let bits: DescriptorBits

  func decoded(_ capabilities: Capabilities) throws(QueueError) -> Descriptor {
    switch Granularity(rawValue: bits.granularity) {
    case .pasid: return .invalidate(.translationsOfPASID(bits.pasid, domain: bits.domain))
    case .pages:
      let pages = bits.pages(capabilities, isFirstStage: true)
      return .invalidate(.pagesOfPASID(bits.pasid, domain: bits.domain, pages, leafOnly: bits.leafOnly))
    case nil: throw .reservedField
    }
  }
}

/// PASID-cache invalidate descriptor (VT-d 6.5.2.2).
struct PASIDCacheInvalidate: DescriptorFormat {
  static var type: UInt64 { 7 }
  static var reserved: (low: UInt64, high: UInt64) { (0xfff0_0000_0000_f1c0, .max) }
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { isScalable }

  enum Granularity: UInt64 {
    case domain = 0
    case pasid = 1
    case global = 3
  }

  let bits: DescriptorBits

  func decoded(_ capabilities: Capabilities) throws(QueueError) -> Descriptor {
    switch Granularity(rawValue: bits.granularity) {
    case .domain: .invalidate(.pasidsOfDomain(bits.domain))
    case .pasid: .invalidate(.pasid(bits.pasid, domain: bits.domain))
    case .global: .invalidate(.allPASIDs)
    case nil: throw .reservedField
    }
  }
}

/// PASID-based device-TLB invalidate descriptor (VT-d 6.5.2.6). ECAP.DIT is clear, so PFSID is reserved.
struct PASIDDeviceTLBInvalidate: DescriptorFormat {
  static var type: UInt64 { 8 }
  static var reserved: (low: UInt64, high: UInt64) { (0xfff0_0000_0000_f000, 0x7fe) }
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { isScalable && unit.deviceTLB && unit.pasid }

  let bits: DescriptorBits
  var source: RequesterID { RequesterID(rawValue: UInt16(truncatingIfNeeded: bits.low >> 16)) }  // SID
  var isGlobal: Bool { bits.high[bit: 0] }  // G
  var isSized: Bool { bits.high[bit: 11] }  // S

  func decoded(_ capabilities: Capabilities) -> Descriptor {
    .invalidate(.deviceTLBOfPASID(source, isGlobal ? nil : bits.pasid, bits.devicePages(isSized: isSized)))
  }
}

/// Page group response descriptor (VT-d 7.6.1).
struct PageGroupResponseDescriptor: DescriptorFormat {
  static var type: UInt64 { 9 }
  static var reserved: (low: UInt64, high: UInt64) { (0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003) }
  static func isValid(isScalable: Bool, _ unit: Capabilities) -> Bool { isScalable && unit.pageRequests }

  let bits: DescriptorBits
  var source: RequesterID { RequesterID(rawValue: UInt16(truncatingIfNeeded: bits.low >> 16)) }  // RID
  var hasPASID: Bool { bits.low[bit: 4] }  // PP
  var code: PageGroupResponse.Code {
    PageGroupResponse.Code(field: UInt8(truncatingIfNeeded: bits.low[bits: 12...15]))
  }
  var groupIndex: UInt16 { UInt16(truncatingIfNeeded: bits.high[bits: 3...11]) }

  func decoded(_ capabilities: Capabilities) -> Descriptor {
    .respond(
      PageGroupResponse(code: code, groupIndex: groupIndex, pasid: hasPASID ? bits.pasid : nil), to: source)
  }
}
