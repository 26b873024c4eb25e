// Fault conditions of VT-d 7.1.3 (address translation) and 5.1.4.1 (interrupt remapping), with their codes in the
// field FR of the fault recording registers.

/// A fault reason code, each with the specification's name of the condition.
public enum FaultReason: UInt8, Error, Hashable, Sendable, CaseIterable {
  // Legacy mode.
  case rootEntryNotPresent = 0x01  // LRT.2
  case contextEntryNotPresent = 0x02  // LCT.2
  case contextEntryInvalid = 0x03  // LCT.4
  case addressBeyondWidth = 0x04  // LGN.1
  case writePermission = 0x05  // LGN.2
  case readPermission = 0x06  // LGN.3
  case secondStageEntryAccess = 0x07  // LSS.1
  case rootEntryAccess = 0x08  // LRT.1
  case contextEntryAccess = 0x09  // LCT.1
  case rootEntryReserved = 0x0a  // LRT.3
  case contextEntryReserved = 0x0b  // LCT.3
  case secondStageEntryReserved = 0x0c  // LSS.2
  case translationTypeBlocks = 0x0d  // LCT.5
  case interruptAddress = 0x0e  // LGN.4

  // Interrupt remapping.
  case interruptRequestReserved = 0x20
  case interruptIndexBeyondTable = 0x21
  case interruptEntryNotPresent = 0x22
  case interruptEntryAccess = 0x23
  case interruptEntryReserved = 0x24
  case compatibilityFormatBlocked = 0x25
  case interruptSourceValidation = 0x26

  // The root table address register.
  case translationTableModeInvalid = 0x30  // RTA.1
  case pasidInLegacyMode = 0x31  // RTA.2
  case pageRequestInLegacyMode = 0x32  // RTA.3

  // Scalable mode: root, context, PASID directory, PASID table.
  case scalableRootEntryAccess = 0x38  // SRT.1
  case scalableRootEntryNotPresent = 0x39  // SRT.2
  case scalableRootEntryReserved = 0x3a  // SRT.3
  case scalableContextEntryAccess = 0x40  // SCT.1
  case scalableContextEntryNotPresent = 0x41  // SCT.2
  case scalableContextEntryReserved = 0x42  // SCT.3
  case scalableContextEntryInvalid = 0x43  // SCT.4
  case deviceTLBNotEnabled = 0x44  // SCT.5
  case pasidNotEnabled = 0x45  // SCT.6
  case pasidBeyondDirectory = 0x46  // SCT.7
  case pageRequestNotEnabled = 0x47  // SCT.8
  case ridPASIDBeyondDirectory = 0x48  // SCT.9
  case pasidDirectoryEntryAccess = 0x50  // SPD.1
  case pasidDirectoryEntryNotPresent = 0x51  // SPD.2
  case pasidDirectoryEntryReserved = 0x52  // SPD.3
  case pasidEntryAccess = 0x58  // SPT.1
  case pasidEntryNotPresent = 0x59  // SPT.2
  case pasidEntryReserved = 0x5a  // SPT.3
  case pasidEntryInvalid = 0x5b  // SPT.4
  case executeRequestNotEnabled = 0x5c  // SPT.5
  case supervisorRequestNotEnabled = 0x5d  // SPT.6

  // Scalable mode: first stage.
  case firstStageEntryAccess = 0x70  // SFS.1
  case firstStageEntryNotPresent = 0x71  // SFS.2
  case firstStageEntryReserved = 0x72  // SFS.3
  case firstStageRootAccess = 0x73  // SFS.4
  case firstStageEntryBeyondWidth = 0x74  // SFS.5
  case firstStageRootReadPermission = 0x75  // SFS.6
  case firstStageEntryReadPermission = 0x76  // SFS.7
  case firstStageEntryWritePermission = 0x77  // SFS.8
  case firstStageUpdateWithoutSnoop = 0x90  // SFS.9
  case firstStageUpdateFailed = 0x91  // SFS.10

  // Scalable mode: second stage.
  case scalableSecondStageEntryAccess = 0x78  // SSS.1
  case scalableSecondStageNotPresent = 0x79  // SSS.2
  case scalableSecondStageEntryReserved = 0x7a  // SSS.3
  case scalableSecondStageRootAccess = 0x7b  // SSS.4
  case scalableSecondStageUpdateWithoutSnoop = 0x7c  // SSS.5
  case scalableSecondStageUpdateFailed = 0x7d  // SSS.6

  // Scalable mode: general.
  case addressNotCanonical = 0x80  // SGN.1
  case userPrivilege = 0x81  // SGN.2
  case executePermission = 0x82  // SGN.3
  case scalableAddressBeyondWidth = 0x83  // SGN.4
  case firstStageOutputBeyondWidth = 0x84  // SGN.5
  case scalableWritePermission = 0x85  // SGN.6
  case scalableReadPermission = 0x86  // SGN.7
  case scalableInterruptAddress = 0x87  // SGN.8

  /// Whether Fault Processing Disable (FPD) suppresses its recording. It does not where the fault concerns the entry
  /// that contains FPD.
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
