import VFIO
import VTd

/// A feature that the guest's unit offers, but the host's IOMMU of a device lacks.
public enum HostRequirement: Hashable, Sendable {
  case vtd
  case nesting(missing: [String])
  case addressWidth(host: Int, wanted: Int)
  case gigabytePages
  case fiveLevels
  case pasidBits(host: Int, wanted: Int)
  case supervisorRequests
  case extendedAccessedFlag
  case coherentWalks
  case executeRequests
  case cachingMode

  /// Returns the names of the ECAP bits that nested translation needs and the host lacks.
  static func missingForNesting(_ vtd: HardwareInformation.VTd) -> [String] {
    let bits: [(name: String, bit: UInt64)] = [("SMTS", 43), ("NEST", 26), ("FSTS", 47), ("SSTS", 46)]
    return bits.filter { vtd.extendedCapability >> $0.bit & 1 == 0 }.map(\.name)
  }

  /// Returns the first requirement that the host does not meet; nil if it meets all. A unit without first stage
  /// requires only caching mode, because the host then translates only to the guest's memory.
  static func missing(for unit: UnitOptions, on host: HardwareInformation) -> HostRequirement? {
    guard unit.cachingMode == true else { return .cachingMode }
    guard unit.firstStage else { return nil }
    guard let vtd = host.vtd else { return .vtd }
    let missing = missingForNesting(vtd)
    if !missing.isEmpty { return .nesting(missing: missing) }
    if unit.addressWidth >= 57, !vtd.offersFiveLevels { return .fiveLevels }
    if vtd.addressWidth < unit.addressWidth {
      return .addressWidth(host: vtd.addressWidth, wanted: unit.addressWidth)
    }
    if unit.fs1gp, !vtd.offersFirstStageGigabytePages { return .gigabytePages }
    if vtd.pasidBits < unit.pasidBits { return .pasidBits(host: vtd.pasidBits, wanted: unit.pasidBits) }
    let offered = Capabilities(unit).extended
    if offered >> 31 & 1 != 0, !vtd.offersSupervisorRequests { return .supervisorRequests }
    if offered >> 34 & 1 != 0, !vtd.offersExtendedAccessedFlag { return .extendedAccessedFlag }
    // The guest writes its tables without flushing them from the CPUs' caches.
    if offered >> 48 & 1 != 0, !vtd.offersCoherentWalks { return .coherentWalks }
    // struct iommu_hwpt_vtd_s1 has no ERE, even if the host's IOMMU supports ERS.
    if offered >> 30 & 1 != 0 { return .executeRequests }
    return nil
  }
}
