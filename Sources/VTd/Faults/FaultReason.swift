// Fault conditions of VT-d 7.1.3 (address translation) and 5.1.4.1 (interrupt remapping), with their codes in the
// field FR of the fault recording registers.

public enum FaultReason: UInt8, Error, Hashable, Sendable, CaseIterable {
  // Legacy mode.
  case rootEntryNotPresent = 0x01
  case contextEntryNotPresent = 0x02
  case contextEntryInvalid = 0x03
  case addressBeyondWidth = 0x04
  case writePermission = 0x05
  case readPermission = 0x06
  case secondStageEntryAccess = 0x07
  case rootEntryAccess = 0x08
  case contextEntryAccess = 0x09
  case rootEntryReserved = 0x0a
  case contextEntryReserved = 0x0b
  case secondStageEntryReserved = 0x0c
  case translationTypeBlocks = 0x0d
  case interruptAddress = 0x0e

  // Interrupt remapping.
  case interruptRequestReserved = 0x20
  case interruptIndexBeyondTable = 0x21
  case interruptEntryNotPresent = 0x22
  case interruptEntryAccess = 0x23
  case interruptEntryReserved = 0x24
  case compatibilityFormatBlocked = 0x25
  case interruptSourceValidation = 0x26

  // The root table address register.
  case translationTableModeInvalid = 0x30
  case pasidInLegacyMode = 0x31
  case pageRequestInLegacyMode = 0x32

  // Scalable mode: root, context, PASID directory, PASID table.
  case scalableRootEntryAccess = 0x38
  case scalableRootEntryNotPresent = 0x39
  case scalableRootEntryReserved = 0x3a
  case scalableContextEntryAccess = 0x40
  case scalableContextEntryNotPresent = 0x41
  case scalableContextEntryReserved = 0x42
  case scalableContextEntryInvalid = 0x43
  case deviceTLBNotEnabled = 0x44
  case pasidNotEnabled = 0x45
  case pasidBeyondDirectory = 0x46
  case pageRequestNotEnabled = 0x47
  case ridPASIDBeyondDirectory = 0x48
  case pasidDirectoryEntryAccess = 0x50
  case pasidDirectoryEntryNotPresent = 0x51
  case pasidDirectoryEntryReserved = 0x52
  case pasidEntryAccess = 0x58
  case pasidEntryNotPresent = 0x59
  case pasidEntryReserved = 0x5a
  case pasidEntryInvalid = 0x5b
  case executeRequestNotEnabled = 0x5c
  case supervisorRequestNotEnabled = 0x5d

  // Scalable mode: first stage.
  case firstStageEntryAccess = 0x70
  case firstStageEntryNotPresent = 0x71
  case firstStageEntryReserved = 0x72
  case firstStageRootAccess = 0x73
  case firstStageEntryBeyondWidth = 0x74
  case firstStageRootReadPermission = 0x75
  case firstStageEntryReadPermission = 0x76
  case firstStageEntryWritePermission = 0x77
  case firstStageUpdateWithoutSnoop = 0x90
  case firstStageUpdateFailed = 0x91

  // Scalable mode: second stage.
  case scalableSecondStageEntryAccess = 0x78
  case scalableSecondStageNotPresent = 0x79
  case scalableSecondStageEntryReserved = 0x7a
  case scalableSecondStageRootAccess = 0x7b
  case scalableSecondStageUpdateWithoutSnoop = 0x7c
  case scalableSecondStageUpdateFailed = 0x7d

  // Scalable mode: general.
  case addressNotCanonical = 0x80
  case userPrivilege = 0x81
  case executePermission = 0x82
  case scalableAddressBeyondWidth = 0x83
  case firstStageOutputBeyondWidth = 0x84
  case scalableWritePermission = 0x85
  case scalableReadPermission = 0x86
  case scalableInterruptAddress = 0x87

  /// Whether Fault Processing Disable (FPD) suppresses the recording of the fault. A fault is always recorded if it
  /// occurs before the unit has read an entry with FPD.
  public var isQualified: Bool {
    switch self {
    case .rootEntryNotPresent, .rootEntryAccess, .rootEntryReserved, .contextEntryAccess,
      .interruptRequestReserved, .interruptIndexBeyondTable, .interruptEntryAccess, .compatibilityFormatBlocked,
      .translationTableModeInvalid, .pasidInLegacyMode, .pageRequestInLegacyMode,
      .scalableRootEntryAccess, .scalableRootEntryNotPresent, .scalableRootEntryReserved,
      .scalableContextEntryAccess:
      false
    default:
      true
    }
  }
}

extension FaultReason {
  /// The condition's name in the specification (VT-d 7.1.3). Nil for interrupt remapping, whose conditions have codes
  /// but no names (VT-d 5.1.4.1).
  public var condition: String? {
    switch self {
    case .rootEntryNotPresent: "LRT.2"
    case .contextEntryNotPresent: "LCT.2"
    case .contextEntryInvalid: "LCT.4"
    case .addressBeyondWidth: "LGN.1"
    case .writePermission: "LGN.2"
    case .readPermission: "LGN.3"
    case .secondStageEntryAccess: "LSS.1"
    case .rootEntryAccess: "LRT.1"
    case .contextEntryAccess: "LCT.1"
    case .rootEntryReserved: "LRT.3"
    case .contextEntryReserved: "LCT.3"
    case .secondStageEntryReserved: "LSS.2"
    case .translationTypeBlocks: "LCT.5"
    case .interruptAddress: "LGN.4"
    case .interruptRequestReserved, .interruptIndexBeyondTable, .interruptEntryNotPresent, .interruptEntryAccess,
      .interruptEntryReserved, .compatibilityFormatBlocked, .interruptSourceValidation:
      nil
    case .translationTableModeInvalid: "RTA.1"
    case .pasidInLegacyMode: "RTA.2"
    case .pageRequestInLegacyMode: "RTA.3"
    case .scalableRootEntryAccess: "SRT.1"
    case .scalableRootEntryNotPresent: "SRT.2"
    case .scalableRootEntryReserved: "SRT.3"
    case .scalableContextEntryAccess: "SCT.1"
    case .scalableContextEntryNotPresent: "SCT.2"
    case .scalableContextEntryReserved: "SCT.3"
    case .scalableContextEntryInvalid: "SCT.4"
    case .deviceTLBNotEnabled: "SCT.5"
    case .pasidNotEnabled: "SCT.6"
    case .pasidBeyondDirectory: "SCT.7"
    case .pageRequestNotEnabled: "SCT.8"
    case .ridPASIDBeyondDirectory: "SCT.9"
    case .pasidDirectoryEntryAccess: "SPD.1"
    case .pasidDirectoryEntryNotPresent: "SPD.2"
    case .pasidDirectoryEntryReserved: "SPD.3"
    case .pasidEntryAccess: "SPT.1"
    case .pasidEntryNotPresent: "SPT.2"
    case .pasidEntryReserved: "SPT.3"
    case .pasidEntryInvalid: "SPT.4"
    case .executeRequestNotEnabled: "SPT.5"
    case .supervisorRequestNotEnabled: "SPT.6"
    case .firstStageEntryAccess: "SFS.1"
    case .firstStageEntryNotPresent: "SFS.2"
    case .firstStageEntryReserved: "SFS.3"
    case .firstStageRootAccess: "SFS.4"
    case .firstStageEntryBeyondWidth: "SFS.5"
    case .firstStageRootReadPermission: "SFS.6"
    case .firstStageEntryReadPermission: "SFS.7"
    case .firstStageEntryWritePermission: "SFS.8"
    case .firstStageUpdateWithoutSnoop: "SFS.9"
    case .firstStageUpdateFailed: "SFS.10"
    case .scalableSecondStageEntryAccess: "SSS.1"
    case .scalableSecondStageNotPresent: "SSS.2"
    case .scalableSecondStageEntryReserved: "SSS.3"
    case .scalableSecondStageRootAccess: "SSS.4"
    case .scalableSecondStageUpdateWithoutSnoop: "SSS.5"
    case .scalableSecondStageUpdateFailed: "SSS.6"
    case .addressNotCanonical: "SGN.1"
    case .userPrivilege: "SGN.2"
    case .executePermission: "SGN.3"
    case .scalableAddressBeyondWidth: "SGN.4"
    case .firstStageOutputBeyondWidth: "SGN.5"
    case .scalableWritePermission: "SGN.6"
    case .scalableReadPermission: "SGN.7"
    case .scalableInterruptAddress: "SGN.8"
    }
  }
}
