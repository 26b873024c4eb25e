// What a remapping unit can be asked to be: QEMU's `-device intel-iommu` properties, and `x-nested`,
// which is ours. `validate` refuses what contradicts itself and what the model does not do, so that
// no option is taken and then ignored.

/// The options of one remapping unit. The comments give QEMU's names.
public struct UnitOptions: Hashable, Sendable {
  /// `x-scalable-mode`, `scalable-mode`: PASID tables (ECAP.SMTS).
  public var scalableMode = false
  /// `x-flts`, `fsts`: first-stage translation (ECAP.FSTS), and without `nested` no second stage in scalable mode.
  public var firstStage = false
  /// `x-nested`: first stage, second stage and the two nested (ECAP.NEST) in one unit. Not in QEMU.
  public var nested = false
  /// `aw-bits`: width of input addresses, and of physical ones as far as they go: 39, 48, or 57.
  public var addressWidth = 48
  /// `intremap`: interrupt remapping (ECAP.IR).
  public var interruptRemapping = true
  /// `eim`: 32-bit APIC identifiers (ECAP.EIM); nil: as `interruptRemapping`.
  public var extendedInterruptMode: Bool?
  /// `caching-mode`: the guest invalidates after it makes an entry present, too (CAP.CM).
  public var cachingMode = false
  /// `snoop-control`: the SNP bit of second-stage leaves, PGSNP of PASID entries (ECAP.SC).
  public var snoopControl = false
  /// `device-iotlb`: devices may have translation caches of their own (ECAP.DT).
  public var deviceIOTLB = false
  /// `pasid-bits`: width of the PASIDs that requests may carry (ECAP.PASID and PSS), 0 to 20; 0: none.
  public var pasidBits = 0
  /// `svm`: page requests (ECAP.PRS), with drain (PDS) and the no-write flag (NWFS).
  public var svm = false
  /// `fs1gp`: 1 GiB pages in the first stage (CAP.FS1GP).
  public var fs1gp = true
  /// `dma-drain`: in-flight requests are drained by invalidations (CAP.DRD and DWD).
  public var dmaDrain = true
  /// `dma-translation`: second-stage address widths are offered at all (CAP.SAGAW).
  public var dmaTranslation = true
  /// `stale-tm`: with `deviceIOTLB`, bit 62 (TM) of second-stage leaves is ignored, not reserved.
  public var staleTranslationMethod = false
  /// `pt`: pass-through (ECAP.PT).
  public var passThrough = true

  public init() {}

  /// Whether EIM is offered.
  public var offersExtendedInterruptMode: Bool { extendedInterruptMode ?? interruptRemapping }

  /// Whether scalable mode has second-stage translation.
  public var offersScalableSecondStage: Bool { scalableMode && (!firstStage || nested) }

  /// Width of physical addresses in the unit's tables: what the DMAR table says as HAW (there, minus one).
  public var hostAddressWidth: Int { min(addressWidth, 52) }

  /// - Throws: the first option that does not fit, by its QEMU name.
  public func validate() throws(UnitOptionError) {
    if firstStage, !scalableMode {
      throw UnitOptionError(option: "x-flts", problem: .requires("x-flts is only available in scalable mode"))
    }
    if nested, !scalableMode {
      throw UnitOptionError(option: "x-nested", problem: .requires("x-nested is only available in scalable mode"))
    }
    if nested, !firstStage {
      throw UnitOptionError(option: "x-nested", problem: .requires("x-nested needs x-flts=on"))
    }
    switch addressWidth {
    case 48, 57: break
    case 39 where !firstStage: break
    case 39:
      throw UnitOptionError(
        option: "aw-bits", problem: .value("Scalable mode(x-flts=on): supported values for aw-bits are: 48, 57"))
    default:
      let mode = scalableMode ? "Scalable mode(x-flts=\(firstStage ? "on" : "off"))" : "Legacy mode"
      throw UnitOptionError(
        option: "aw-bits",
        problem: .value("\(mode): supported values for aw-bits are: \(firstStage ? "48, 57" : "39, 48, 57")"))
    }
    if extendedInterruptMode == true, !interruptRemapping {
      throw UnitOptionError(option: "eim", problem: .requires("eim=on cannot be selected without intremap=on"))
    }
    if scalableMode, !dmaDrain {
      throw UnitOptionError(option: "dma-drain", problem: .requires("Need to set dma_drain for scalable mode"))
    }
    if firstStage, !dmaTranslation {
      throw UnitOptionError(
        option: "dma-translation", problem: .requires("dma-translation=off cannot be selected with x-flts=on"))
    }
    if !(0...20).contains(pasidBits) {
      throw UnitOptionError(option: "pasid-bits", problem: .value("pasid-bits must be between 0 and 20"))
    }
    if pasidBits > 0, !scalableMode {
      throw UnitOptionError(option: "pasid-bits", problem: .requires("Need to set scalable mode for PASID"))
    }
    if staleTranslationMethod, !deviceIOTLB {
      throw UnitOptionError(option: "stale-tm", problem: .requires("stale-tm needs device-iotlb=on"))
    }
    if svm {
      if !deviceIOTLB {
        throw UnitOptionError(option: "svm", problem: .requires("Need to set device IOTLB for svm"))
      }
      if !firstStage {
        throw UnitOptionError(option: "svm", problem: .requires("Need to set flts for svm"))
      }
      if pasidBits == 0 {
        throw UnitOptionError(option: "svm", problem: .requires("Need to set PASID support for svm"))
      }
    }
  }
}

/// An option that does not fit.
public struct UnitOptionError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Problem: Hashable, Sendable {
    /// It needs, or excludes, another option.
    case requires(String)
    /// Its value is not among those offered.
    case value(String)
  }

  /// As on the command line: `x-flts`.
  public let option: String
  public let problem: Problem

  public init(option: String, problem: Problem) {
    self.option = option
    self.problem = problem
  }

  /// One line for a person, with QEMU's words where QEMU has any.
  public var description: String {
    switch problem {
    case .requires(let text), .value(let text): text
    }
  }
}
