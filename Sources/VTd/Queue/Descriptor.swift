import Hardware

// Descriptors of the invalidation queue (VT-d 6.5.2): their formats as data, and their decoding.

/// The raw bits of a descriptor, 128 or 256 of them.
struct DescriptorBits: Hashable, Sendable {
  var low: UInt64
  var high: UInt64
  /// The second 128 bits of a 256-bit descriptor, reserved in every supported type.
  var upper: UInt64 = 0

  /// The type: bits 11:9 and 3:0.
  var type: UInt64 { low[bits: 0...3] | low[bits: 9...11] << 4 }
}

enum Descriptor: Hashable, Sendable {
  case invalidate(Invalidation)
  case wait(InvalidationWait)
  case respond(PageGroupResponse, to: RequesterID)

  /// Reserved bits of each type: low and high 64 bits.
  private static let reserved: [(low: UInt64, high: UInt64)] = [
    (.max, .max),  // 0 is no type
    (0xfffc_0000_0000_f1c0, .max),  // 1 context cache
    (0xffff_ffff_0000_f100, 0xf80),  // 2 IOTLB
    (0xffff_0000_ffe0_f1f0, 0xffe),  // 3 device-TLB; PFSID is reserved: ECAP.DIT is clear
    (0xffff_0000_07ff_f1e0, .max),  // 4 interrupt entry cache
    (0x0000_0000_ffff_f100, 0x3),  // 5 wait
    (0xfff0_0000_0000_f1c0, 0xf80),  // 6 PASID-based IOTLB
    (0xfff0_0000_0000_f1c0, .max),  // 7 PASID cache
    (0xfff0_0000_0000_f000, 0x7fe),  // 8 PASID-based device-TLB; PFSID likewise
    (0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),  // 9 page group response
  ]

  static func decode(
    _ bits: DescriptorBits, tableMode: TranslationMode.TableMode, capabilities: Capabilities
  ) throws(QueueError) -> Descriptor {
    let type = Int(bits.type)
    // "List of Valid Descriptor Types for Each Operating Mode" (Table 23).
    let isScalable = tableMode == .scalable
    let isValid =
      switch type {
      case 1, 2, 5: true
      case 3: capabilities.deviceTLB
      case 4: capabilities.interruptRemapping
      case 6, 7: isScalable
      case 8: isScalable && capabilities.deviceTLB && capabilities.pasid
      case 9: isScalable && capabilities.pageRequests
      default: false
      }
    guard isValid else { throw .invalidDescriptorType }
    guard bits.low & reserved[type].low == 0, bits.high & reserved[type].high == 0, bits.upper == 0 else {
      throw .reservedField
    }
    let domain = UInt16(truncatingIfNeeded: bits.low >> 16)
    let pasid = UInt32(truncatingIfNeeded: bits.low[bits: 32...51])
    let granularity = bits.low[bits: 4...5]
    let addressMask = Int(bits.high[bits: 0...5])
    let pages = PageRange(
      address: bits.high, addressMask: addressMask, width: capabilities.maximumGuestAddressWidth,
      isFirstStage: type == 6)

    switch (type, granularity) {
    case (1, 1): return .invalidate(.allContexts)
    case (1, 2): return .invalidate(.contextsOfDomain(domain))
    case (1, 3):
      return .invalidate(
        .contextsOfDevice(
          RequesterID(rawValue: UInt16(truncatingIfNeeded: bits.low >> 32)),
          FunctionMask(rawValue: UInt8(truncatingIfNeeded: bits.low[bits: 48...49]))))
    case (2, 1): return .invalidate(.allTranslations)
    case (2, 2): return .invalidate(.translationsOfDomain(domain))
    case (2, 3):
      guard addressMask <= Capabilities.maximumAddressMask else { throw .reservedField }
      return .invalidate(.pagesOfDomain(domain, pages, leafOnly: bits.high[bit: 6]))
    case (3, _):
      return .invalidate(
        .deviceTLB(
          RequesterID(rawValue: UInt16(truncatingIfNeeded: bits.low >> 32)),
          deviceTLBRange(bits.high, isSized: bits.high[bit: 0])))
    case (4, _):
      guard bits.low[bit: 4] else { return .invalidate(.interruptEntries(0...0xffff)) }
      let first = Int(bits.low[bits: 32...47])
      let count = 1 << min(Int(bits.low[bits: 27...31]), 16)
      let start = first & ~(count - 1)
      return .invalidate(.interruptEntries(start...start + count - 1))
    case (5, _):
      // PD: page requests are in the queue, and responses have reached their functions, before the next fetch.
      guard !bits.low[bit: 7] || capabilities.pageRequestDrain else { throw .reservedField }
      return .wait(InvalidationWait(bits))
    case (9, _):
      return .respond(
        PageGroupResponse(
          code: PageGroupResponse.Code(field: UInt8(truncatingIfNeeded: bits.low[bits: 12...15])),
          groupIndex: UInt16(truncatingIfNeeded: bits.high[bits: 3...11]), pasid: bits.low[bit: 4] ? pasid : nil),
        to: RequesterID(rawValue: domain))
    case (6, 2): return .invalidate(.translationsOfPASID(pasid, domain: domain))
    case (6, 3): return .invalidate(.pagesOfPASID(pasid, domain: domain, pages, leafOnly: bits.high[bit: 6]))
    case (7, 0): return .invalidate(.pasidsOfDomain(domain))
    case (7, 1): return .invalidate(.pasid(pasid, domain: domain))
    case (7, 3): return .invalidate(.allPASIDs)
    case (8, _):
      return .invalidate(
        .deviceTLBOfPASID(
          RequesterID(rawValue: domain), bits.high[bit: 0] ? nil : pasid,
          deviceTLBRange(bits.high, isSized: bits.high[bit: 11])))
    default: throw .reservedField
    }
  }

  /// Decodes ATS's address range: with S set, the lowest zero bit from bit 12 up encodes the size.
  private static func deviceTLBRange(_ field: UInt64, isSized: Bool) -> PageRange {
    let address = field & ~0xfff
    guard isSized else { return PageRange(address: address, addressMask: 0) }
    let ones = (~(address >> 12)).trailingZeroBitCount
    return PageRange(address: address, addressMask: ones + 1)
  }
}

/// An invalidation wait descriptor (VT-d 6.5.2.8). The unit executes descriptors in order, so the fence flag (FN) needs
/// no action.
struct InvalidationWait: Hashable, Sendable {
  /// Completion writes `statusData` to `statusAddress` (SW).
  let writesStatus: Bool
  let statusAddress: UInt64
  let statusData: UInt32
  /// Completion raises the invalidation event (IF).
  let interrupts: Bool

  init(_ bits: DescriptorBits) {
    writesStatus = bits.low[bit: 5]
    statusAddress = bits.high & ~3
    statusData = UInt32(truncatingIfNeeded: bits.low >> 32)
    interrupts = bits.low[bit: 4]
  }
}
