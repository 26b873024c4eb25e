import VTd

/// Describes fault reasons in words, based on the specification's tables of fault conditions (VT-d 5.1.4.1, 7.1.3).
enum FaultText {
  /// Returns `fault 0x71 (SFS.2): …`.
  static func line(_ reason: FaultReason) -> String {
    let condition = reason.condition.map { " (\($0))" } ?? ""
    return "fault 0x" + String(reason.rawValue, radix: 16) + condition + ": " + words(reason)
  }

  private static func words(_ reason: FaultReason) -> String {
    switch reason {
    case .rootEntryNotPresent, .scalableRootEntryNotPresent: "the root entry is not present"
    case .contextEntryNotPresent, .scalableContextEntryNotPresent: "the context entry is not present"
    case .contextEntryInvalid, .scalableContextEntryInvalid:
      "the context entry selects a feature that the unit does not support"
    case .addressBeyondWidth, .scalableAddressBeyondWidth:
      "the address has more bits than the unit or its tables translate"
    case .writePermission: "no write permission"
    case .readPermission: "no read permission"
    case .secondStageEntryAccess, .scalableSecondStageEntryAccess: "a second-stage entry cannot be read"
    case .rootEntryAccess, .scalableRootEntryAccess: "the root entry cannot be read"
    case .contextEntryAccess, .scalableContextEntryAccess: "the context entry cannot be read"
    case .rootEntryReserved, .scalableRootEntryReserved: "reserved bits are set in the root entry"
    case .contextEntryReserved, .scalableContextEntryReserved: "reserved bits are set in the context entry"
    case .secondStageEntryReserved, .scalableSecondStageEntryReserved: "reserved bits are set in a second-stage entry"
    case .translationTypeBlocks:
      "the context entry's translation type blocks translation requests and translated requests"
    case .interruptAddress, .scalableInterruptAddress:
      "the address, before or after its translation, is in the interrupt range"
    case .interruptRequestReserved: "reserved bits are set in the interrupt request"
    case .interruptIndexBeyondTable: "the interrupt index is beyond the table"
    case .interruptEntryNotPresent: "the interrupt entry is not present"
    case .interruptEntryAccess: "the interrupt entry cannot be read"
    case .interruptEntryReserved: "reserved bits are set in the interrupt entry"
    case .compatibilityFormatBlocked: "interrupt requests in compatibility format are blocked"
    case .interruptSourceValidation: "the interrupt entry does not permit this source"
    case .translationTableModeInvalid: "the root table address register selects a reserved mode"
    case .pasidInLegacyMode: "a request with PASID in legacy mode"
    case .pageRequestInLegacyMode: "a page request in legacy mode"
    case .deviceTLBNotEnabled: "the context entry does not enable device-TLBs"
    case .pasidNotEnabled: "the context entry does not enable requests with PASID"
    case .pageRequestNotEnabled: "the context entry does not enable page requests"
    case .pasidBeyondDirectory: "the PASID is beyond the directory"
    case .ridPASIDBeyondDirectory: "RID_PASID is beyond the directory"
    case .pasidDirectoryEntryAccess: "the PASID-directory entry cannot be read"
    case .pasidDirectoryEntryNotPresent: "the PASID-directory entry is not present"
    case .pasidDirectoryEntryReserved: "reserved bits are set in the PASID-directory entry"
    case .pasidEntryAccess: "the PASID-table entry cannot be read"
    case .pasidEntryNotPresent: "the PASID-table entry is not present"
    case .pasidEntryReserved: "reserved bits are set in the PASID-table entry"
    case .pasidEntryInvalid: "the PASID-table entry selects a feature that the unit does not support"
    case .executeRequestNotEnabled: "execute requests are not enabled"
    case .supervisorRequestNotEnabled: "requests with supervisor privilege are not enabled"
    case .firstStageEntryAccess: "a first-stage entry cannot be read"
    case .firstStageEntryNotPresent: "a first-stage entry is not present"
    case .firstStageEntryReserved: "reserved bits are set in a first-stage entry"
    case .firstStageRootAccess: "an entry of the top first-stage table cannot be read"
    case .firstStageEntryBeyondWidth: "a first-stage entry is at an address beyond the second stage's width"
    case .firstStageRootReadPermission: "the second stage grants no read permission for the top first-stage table"
    case .firstStageEntryReadPermission: "the second stage grants no read permission for a first-stage table"
    case .firstStageEntryWritePermission: "the second stage grants no write permission for a first-stage table"
    case .firstStageUpdateWithoutSnoop, .scalableSecondStageUpdateWithoutSnoop:
      "accessed or dirty bits would have to be set, but PWSNP is clear in the PASID-table entry"
    case .firstStageUpdateFailed, .scalableSecondStageUpdateFailed: "accessed or dirty bits cannot be set"
    case .scalableSecondStageNotPresent: "a second-stage entry is not present"
    case .scalableSecondStageRootAccess: "an entry of the top second-stage table cannot be read"
    case .addressNotCanonical: "the address is not canonical"
    case .userPrivilege: "a request with user privilege for a supervisor page"
    case .executePermission: "no execute permission"
    case .firstStageOutputBeyondWidth: "the output address of the first stage is beyond the second stage's width"
    case .scalableWritePermission: "no write permission"
    case .scalableReadPermission: "no read permission"
    }
  }
}
