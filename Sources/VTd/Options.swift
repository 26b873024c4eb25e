// The options of a remapping unit: the properties of QEMU's intel-iommu, and Nestling's `x-nested`. `validate` rejects
// contradictions and everything that the model does not implement, so that no accepted option is ignored.

/// The options of one remapping unit. The comments give QEMU's names.
public struct UnitOptions: Hashable, Sendable {
  /// `x-scalable-mode` or `scalable-mode`: PASID tables (ECAP.SMTS).
  public var scalableMode = false
  /// `x-flts` or `fsts`: first-stage translation (ECAP.FSTS). Without `nested`, scalable mode then has no second stage.
  public var firstStage = false
  /// `x-nested`: first stage, second stage and nested translation (ECAP.NEST) in one unit. QEMU has no such option.
  public var nested = false
  /// `aw-bits`: width of input addresses, 39, 48 or 57. It also limits physical addresses (`hostAddressWidth`).
  public var addressWidth = 48
  /// `intremap`: interrupt remapping (ECAP.IR). Nil means on.
  public var interruptRemapping: Bool?
  /// `eim`: 32-bit APIC identifiers (ECAP.EIM). Nil means the value of `intremap`.
  public var extendedInterruptMode: Bool?
  /// `caching-mode`: the guest must also invalidate after it makes an entry present (CAP.CM). Nil is off. The machine
  /// replaces nil by on if a passed-through device is behind the unit, because the host must follow each such entry.
  public var cachingMode: Bool?
  /// `snoop-control`: the SNP bit of second-stage leaves and PGSNP of PASID-table entries (ECAP.SC).
  public var snoopControl = false
  /// `device-iotlb`: devices may cache translations (ECAP.DT).
  public var deviceIOTLB = false
  /// `pasid-bits`: width of the PASIDs that requests may carry (ECAP.PASID and PSS), 0 to 20. 0 means no PASIDs.
  public var pasidBits = 0
  /// `svm`: page requests (ECAP.PRS), with drain (PDS) and the no-write flag (NWFS), and coherent walks (SMPWC).
  public var svm = false
  /// `fs1gp`: 1 GiB pages in the first stage (CAP.FS1GP).
  public var fs1gp = true
  /// `dma-drain`: invalidations drain requests in flight (CAP.DRD and DWD).
  public var dmaDrain = true
  /// `dma-translation`: the unit offers second-stage address widths (CAP.SAGAW).
  public var dmaTranslation = true
  /// `stale-tm`: with `deviceIOTLB`, bit 62 (TM, Transient Mapping) of second-stage leaves is ignored instead of
  /// reserved.
  public var ignoresTransientMapping = false
  /// `pt`: pass-through (ECAP.PT).
  public var passThrough = true

  public init() {}

  public var offersInterruptRemapping: Bool { interruptRemapping ?? true }
  public var offersExtendedInterruptMode: Bool { extendedInterruptMode ?? offersInterruptRemapping }

  public var offersScalableSecondStage: Bool { scalableMode && (!firstStage || nested) }

  /// Width of physical addresses in the unit's tables, HAW. The DMAR table encodes it minus one.
  public var hostAddressWidth: Int { min(addressWidth, 52) }

  /// - Throws: the first option that is not valid, by its name in QEMU, and the problem.
  public func validate() throws(UnitOptionError) {
    func require(_ holds: Bool, _ option: String, _ problem: UnitOptionError.Problem) throws(UnitOptionError) {
      if !holds { throw UnitOptionError(option: option, problem: problem) }
    }
    try require(!firstStage || scalableMode, "x-flts", .needsScalableMode)
    try require(!nested || scalableMode, "x-nested", .needsScalableMode)
    try require(!nested || firstStage, "x-nested", .needsFirstStage)
    let widths = firstStage ? [48, 57] : [39, 48, 57]
    try require(
      widths.contains(addressWidth), "aw-bits",
      .addressWidth(offered: widths, isScalable: scalableMode, isFirstStage: firstStage))
    try require(extendedInterruptMode != true || offersInterruptRemapping, "eim", .needsInterruptRemapping)
    try require(dmaDrain || !scalableMode, "dma-drain", .neededByScalableMode)
    try require(dmaTranslation || !firstStage, "dma-translation", .neededByFirstStage)
    try require((0...20).contains(pasidBits), "pasid-bits", .pasidBits(offered: 0...20))
    try require(pasidBits == 0 || scalableMode, "pasid-bits", .needsScalableMode)
    try require(!ignoresTransientMapping || deviceIOTLB, "stale-tm", .needsDeviceIOTLB)
    if svm {
      try require(deviceIOTLB, "svm", .needsDeviceIOTLB)
      try require(firstStage, "svm", .needsFirstStage)
      try require(pasidBits > 0, "svm", .needsPASIDs)
    }
  }
}

/// An option that contradicts another one, or whose value is not offered.
public struct UnitOptionError: Error, Hashable, Sendable {
  public enum Problem: Hashable, Sendable {
    case needsScalableMode, needsFirstStage, needsInterruptRemapping, needsDeviceIOTLB, needsPASIDs
    /// The option must be on in scalable mode, or with first stage.
    case neededByScalableMode, neededByFirstStage
    case addressWidth(offered: [Int], isScalable: Bool, isFirstStage: Bool)
    case pasidBits(offered: ClosedRange<Int>)
  }

  /// The option's name on the command line, such as `x-flts`.
  public let option: String
  public let problem: Problem
}
