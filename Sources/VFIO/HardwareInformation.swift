import CLinux
import Linux

/// The type and capabilities of the host IOMMU that translates for a device: IOMMU_GET_HW_INFO.
public struct HardwareInformation: Hashable, Sendable {
  /// VT-d's capability registers (VT-d 11.4.2, 11.4.3), as the kernel reports them.
  public struct VTd: Hashable, Sendable {
    public var capability: UInt64
    public var extendedCapability: UInt64
    /// Whether the unit has erratum 772415 of Sapphire Rapids: a device can write through read-only mappings of a
    /// nesting parent.
    public var hasReadOnlyErratum: Bool

    public init(capability: UInt64, extendedCapability: UInt64, hasReadOnlyErratum: Bool) {
      self.capability = capability
      self.extendedCapability = extendedCapability
      self.hasReadOnlyErratum = hasReadOnlyErratum
    }

    /// ECAP.SMTS, SSTS, FSTS and NEST: nested translation needs all of them.
    public var offersNesting: Bool {
      extendedCapability >> 43 & 1 != 0 && extendedCapability >> 46 & 1 != 0 && extendedCapability >> 47 & 1 != 0
        && extendedCapability >> 26 & 1 != 0
    }
    /// ECAP.SC.
    public var offersSnoopControl: Bool { extendedCapability >> 7 & 1 != 0 }
    /// CAP.MGAW, in bits.
    public var addressWidth: Int { Int(capability >> 16 & 0x3f) + 1 }
    /// CAP.FS1GP.
    public var offersFirstStageGigabytePages: Bool { capability >> 56 & 1 != 0 }
    /// CAP.FS5LP.
    public var offersFiveLevels: Bool { capability >> 60 & 1 != 0 }
    /// Width of a PASID in bits (ECAP.PASID, PSS); 0 without PASID support.
    public var pasidBits: Int { extendedCapability >> 40 & 1 != 0 ? Int(extendedCapability >> 35 & 0x1f) + 1 : 0 }
    /// ECAP.PRS.
    public var offersPageRequests: Bool { extendedCapability >> 29 & 1 != 0 }
    /// ECAP.DT: device TLBs, for ATS.
    public var offersDeviceTLBs: Bool { extendedCapability >> 2 & 1 != 0 }
    /// ECAP.SMPWC: walks of tables in scalable mode snoop the CPUs' caches.
    public var offersCoherentWalks: Bool { extendedCapability >> 48 & 1 != 0 }
    /// ECAP.SRS, EAFS.
    public var offersSupervisorRequests: Bool { extendedCapability >> 31 & 1 != 0 }
    public var offersExtendedAccessedFlag: Bool { extendedCapability >> 34 & 1 != 0 }
  }

  /// IOMMU_HW_CAP_*. A kernel leaves bits clear that it does not know.
  public struct Capabilities: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The device may make requests to execute, and privileged requests, with a PASID.
    public static let pasidExecute = Capabilities(rawValue: UInt64(IOMMU_HW_CAP_PCI_PASID_EXEC))
    public static let pasidPrivileged = Capabilities(rawValue: UInt64(IOMMU_HW_CAP_PCI_PASID_PRIV))
    /// The device or its IOMMU has no ATS, or the kernel does not use it.
    public static let lacksATS = Capabilities(rawValue: UInt64(IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED))
  }

  /// The capabilities of VT-d; nil for another IOMMU.
  public var vtd: VTd?
  public var capabilities: Capabilities
  /// Width in bits of the PASIDs that the kernel has enabled for the device; 0 for none. A kernel before 6.15 may report
  /// a width although it attaches no PASIDs.
  public var pasidWidth: Int

  public init(vtd: VTd?, capabilities: Capabilities, pasidWidth: Int = 0) {
    self.vtd = vtd
    self.capabilities = capabilities
    self.pasidWidth = pasidWidth
  }
}

extension IOMMUFD {
  /// Asks the kernel about the IOMMU of a device.
  /// - Parameter device: the id from VFIO_DEVICE_BIND_IOMMUFD.
  public func hardwareInformation(device: UInt32) throws(SystemError) -> HardwareInformation {
    var data = iommu_hw_info_vtd()
    var request = iommu_hw_info()
    request.size = byteCount(of: iommu_hw_info.self)
    request.dev_id = device
    request.data_len = byteCount(of: iommu_hw_info_vtd.self)
    // SAFETY: the kernel fills the structure, which stays for the call.
    try unsafe withUnsafeMutablePointer(to: &data) { (pointer) throws(SystemError) in
      request.data_uptr = UInt64(UInt(bitPattern: pointer))
      try file.request("IOMMU_GET_HW_INFO", IOMMU_GET_HW_INFO, &request)
    }
    var vtd: HardwareInformation.VTd?
    if request.out_data_type == UInt32(IOMMU_HW_INFO_TYPE_INTEL_VTD) {
      vtd = HardwareInformation.VTd(
        capability: data.cap_reg, extendedCapability: data.ecap_reg,
        hasReadOnlyErratum: data.flags & UInt32(IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17) != 0)
    }
    return HardwareInformation(
      vtd: vtd, capabilities: .init(rawValue: request.out_capabilities),
      pasidWidth: min(Int(request.out_max_pasid_log2), 20))
  }
}
