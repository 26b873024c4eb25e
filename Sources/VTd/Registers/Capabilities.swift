// The Capability and Extended Capability registers (VT-d 11.4.2, 11.4.3). They follow from the options as in QEMU's
// intel-iommu.

/// The two registers, with accessors for the fields that the model uses.
public struct Capabilities: Hashable, Sendable {
  /// CAP_REG.
  public private(set) var capability: UInt64 = 0
  /// ECAP_REG.
  public private(set) var extended: UInt64 = 0
  /// Physical address width of entries, HAW, in bits.
  public let hostAddressWidth: Int

  /// Fault recording registers: one, as in QEMU.
  static let faultRecordCount = 1
  static let faultRecordOffset = 0x220
  static let iotlbOffset = 0xf0
  /// Maximum Address Mask Value: a page-selective invalidation covers at most 2^18 pages.
  static let maximumAddressMask = 18

  public init(_ options: UnitOptions) {
    hostAddressWidth = options.hostAddressWidth

    var cap: UInt64 = 0
    cap[bits: 0...2] = 6  // ND: 16 bits of domain identifier
    cap[bit: 7] = options.cachingMode == true  // CM
    if options.dmaTranslation {  // SAGAW
      cap[bit: 9] = options.addressWidth >= 39
      cap[bit: 10] = options.addressWidth >= 48
      cap[bit: 11] = options.addressWidth >= 57
    }
    cap[bits: 16...21] = UInt64(options.addressWidth - 1)  // MGAW
    cap[bits: 24...33] = UInt64(Self.faultRecordOffset / 16)  // FRO
    cap[bits: 34...37] = 0b11  // SSLPS: 2 MiB, 1 GiB
    cap[bit: 39] = true  // PSI
    cap[bits: 40...47] = UInt64(Self.faultRecordCount - 1)  // NFR
    cap[bits: 48...53] = UInt64(Self.maximumAddressMask)  // MAMV
    cap[bit: 54] = options.dmaDrain  // DWD
    cap[bit: 55] = options.dmaDrain  // DRD
    cap[bit: 56] = options.firstStage && options.fs1gp  // FS1GP
    cap[bit: 60] = options.firstStage && options.addressWidth >= 57  // FS5LP
    capability = cap

    var ecap: UInt64 = 0
    ecap[bit: 1] = true  // QI
    ecap[bit: 2] = options.deviceIOTLB  // DT
    ecap[bit: 3] = options.offersInterruptRemapping  // IR
    ecap[bit: 4] = options.offersExtendedInterruptMode  // EIM
    ecap[bit: 6] = options.passThrough  // PT
    ecap[bit: 7] = options.snoopControl  // SC
    ecap[bits: 8...17] = UInt64(Self.iotlbOffset / 16)  // IRO
    if options.offersInterruptRemapping { ecap[bits: 20...23] = 15 }  // MHMV
    if options.scalableMode {
      ecap[bit: 43] = true  // SMTS
      ecap[bit: 46] = options.offersScalableSecondStage  // SSTS
      ecap[bit: 47] = options.firstStage  // FSTS
      ecap[bit: 31] = options.offersScalableSecondStage  // SRS
    }
    if options.nested {
      // The guest's VFIO and iommufd need coherent walks, dirty tracking and EA bits.
      ecap[bit: 0] = true  // C
      ecap[bit: 26] = true  // NEST
      ecap[bit: 34] = true  // EAFS
      ecap[bit: 45] = true  // SSADS
      // QEMU does not offer these fields of the context entry.
      ecap[bit: 49] = true  // RPS
      ecap[bit: 53] = true  // RPRIVS
    }
    // Shared virtual addressing uses the page tables of processes, which are in coherent memory.
    ecap[bit: 48] = options.nested || options.svm  // SMPWC
    if options.pasidBits > 0 {
      ecap[bit: 40] = true  // PASID
      ecap[bits: 35...39] = UInt64(options.pasidBits - 1)  // PSS
    }
    // Requests to execute. QEMU does not support them.
    if options.nested, options.pasidBits > 0 { ecap[bit: 30] = true }  // ERS
    if options.svm {
      ecap[bit: 29] = true  // PRS
      ecap[bit: 33] = true  // NWFS
      ecap[bit: 42] = true  // PDS
    }
    extended = ecap
  }

  var cachingMode: Bool { capability[bit: 7] }
  var maximumGuestAddressWidth: Int { Int(capability[bits: 16...21]) + 1 }
  var firstStageGigabytePages: Bool { capability[bit: 56] }
  var firstStageFiveLevels: Bool { capability[bit: 60] }
  var deviceTLB: Bool { extended[bit: 2] }
  var interruptRemapping: Bool { extended[bit: 3] }
  var extendedInterruptMode: Bool { extended[bit: 4] }
  var passThrough: Bool { extended[bit: 6] }
  var snoopControl: Bool { extended[bit: 7] }
  var nested: Bool { extended[bit: 26] }
  var pageRequests: Bool { extended[bit: 29] }
  var executeRequests: Bool { extended[bit: 30] }
  var noWriteFlag: Bool { extended[bit: 33] }
  var pageRequestDrain: Bool { extended[bit: 42] }
  var supervisorRequests: Bool { extended[bit: 31] }
  var extendedAccessedFlag: Bool { extended[bit: 34] }
  var pasid: Bool { extended[bit: 40] }
  var scalableMode: Bool { extended[bit: 43] }
  var secondStageAccessedDirty: Bool { extended[bit: 45] }
  var scalableSecondStage: Bool { extended[bit: 46] }
  var firstStage: Bool { extended[bit: 47] }
  var scalablePageWalkCoherency: Bool { extended[bit: 48] }
  var ridPASID: Bool { extended[bit: 49] }
  var ridPrivilege: Bool { extended[bit: 53] }

  /// Width in bits of the PASIDs that requests may carry; 0 if requests carry no PASID.
  var pasidWidth: Int { pasid ? Int(extended[bits: 35...39]) + 1 : 0 }

  /// Returns the number of levels that an entry's AW field selects for the second stage, or nil if the unit does not
  /// offer this number.
  func secondStageLevels(addressWidthField field: UInt64) -> Int? {
    // SAGAW bit n corresponds to AW value n.
    guard (1...3).contains(field), capability[bit: 8 + Int(field)] else { return nil }
    return Int(field) + 2
  }

  /// Bits 51:HAW.
  var addressBitsBeyondHost: UInt64 {
    hostAddressWidth >= 52 ? 0 : UInt64.lowBits(52) & ~UInt64.lowBits(hostAddressWidth)
  }

  /// Bits 63:HAW. They are reserved in pointers that have no ignored bits above the address.
  var pointerBitsBeyondHost: UInt64 { ~UInt64.lowBits(hostAddressWidth) }
}
