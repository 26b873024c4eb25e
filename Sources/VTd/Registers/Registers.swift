import Hardware

// The register set (VT-d 11.4) as data: offset, reset value, writable bits and write-one-to-clear bits. `UnitRegisters`
// implements the effects of writes.

enum RegisterOffset {
  static let version = 0x00  // VER
  static let capability = 0x08  // CAP
  static let extendedCapability = 0x10  // ECAP
  static let globalCommand = 0x18  // GCMD
  static let globalStatus = 0x1c  // GSTS
  static let rootTableAddress = 0x20  // RTADDR
  static let contextCommand = 0x28  // CCMD
  static let faultStatus = 0x34  // FSTS
  static let faultEventControl = 0x38  // FECTL
  static let protectedMemoryEnable = 0x64  // PMEN
  static let invalidationQueueHead = 0x80  // IQH
  static let invalidationQueueTail = 0x88  // IQT
  static let invalidationQueueAddress = 0x90  // IQA
  static let invalidationCompletionStatus = 0x9c  // ICS
  static let invalidationEventControl = 0xa0  // IECTL
  static let invalidationQueueErrorRecord = 0xb0  // IQERCD
  static let interruptRemappingTableAddress = 0xb8  // IRTA
  static let pageRequestQueueHead = 0xc0  // PQH
  static let pageRequestQueueTail = 0xc8  // PQT
  static let pageRequestQueueAddress = 0xd0  // PQA
  static let pageRequestStatus = 0xdc  // PRS
  static let pageRequestEventControl = 0xe0  // PECTL
  static let invalidateAddress = Capabilities.iotlbOffset  // IVA
  static let iotlbInvalidate = Capabilities.iotlbOffset + 8  // IOTLB
  static let faultRecord = Capabilities.faultRecordOffset  // FRCD, 16 bytes each
}

/// One register: 32 or 64 bits wide.
struct RegisterDescription: Sendable {
  let mnemonic: String
  let offset: Int
  /// In bytes: 4 or 8.
  let width: Int
  let reset: UInt64
  /// Bits that software can set and clear.
  let writable: UInt64
  /// Bits that software clears by writing one (RW1C).
  let writeOneToClear: UInt64

  init(
    _ mnemonic: String, at offset: Int, width: Int, reset: UInt64 = 0, writable: UInt64 = 0, writeOneToClear: UInt64 = 0
  ) {
    self.mnemonic = mnemonic
    self.offset = offset
    self.width = width
    self.reset = reset
    self.writable = writable
    self.writeOneToClear = writeOneToClear
  }

  /// Returns all registers of a unit. Every other offset in the page reads as zero.
  static func all(_ capabilities: Capabilities) -> [RegisterDescription] {
    let tableAddress = UInt64.lowBits(capabilities.hostAddressWidth) & ~0xfff
    let upperMessageAddress: UInt64 = capabilities.extendedInterruptMode ? 0xffff_ffff : 0
    let scalable = capabilities.scalableMode
    var table = [
      RegisterDescription("VER", at: RegisterOffset.version, width: 4, reset: 0x10),
      RegisterDescription("CAP", at: RegisterOffset.capability, width: 8, reset: capabilities.capability),
      RegisterDescription("ECAP", at: RegisterOffset.extendedCapability, width: 8, reset: capabilities.extended),
      RegisterDescription("GCMD", at: RegisterOffset.globalCommand, width: 4, writable: GlobalCommand.known.rawValue64),
      RegisterDescription("GSTS", at: RegisterOffset.globalStatus, width: 4),
      RegisterDescription(
        "RTADDR", at: RegisterOffset.rootTableAddress, width: 8, writable: tableAddress | (scalable ? 0xc00 : 0)),
      RegisterDescription(
        "CCMD", at: RegisterOffset.contextCommand, width: 8, writable: 0xe000_0003_ffff_ffff),
      RegisterDescription(
        "FSTS", at: RegisterOffset.faultStatus, width: 4, writeOneToClear: FaultStatus.clearable.rawValue64),
    ]
    table += event("FE", .fault, upperMessageAddress)
    table += [
      // CAP.PLMR and PHMR are clear: no protected memory regions.
      RegisterDescription("PMEN", at: RegisterOffset.protectedMemoryEnable, width: 4),
      RegisterDescription("IQH", at: RegisterOffset.invalidationQueueHead, width: 8),
      RegisterDescription("IQT", at: RegisterOffset.invalidationQueueTail, width: 8, writable: 0x7_fff0),
      RegisterDescription(
        // DW is writable without scalable mode, too: the first fetch reports the error.
        "IQA", at: RegisterOffset.invalidationQueueAddress, width: 8, writable: tableAddress | 0x807),
      RegisterDescription("ICS", at: RegisterOffset.invalidationCompletionStatus, width: 4, writeOneToClear: 1),
    ]
    table += event("IE", .invalidation, upperMessageAddress)
    table += [
      RegisterDescription("IQERCD", at: RegisterOffset.invalidationQueueErrorRecord, width: 8),
      RegisterDescription(
        "IRTA", at: RegisterOffset.interruptRemappingTableAddress, width: 8,
        writable: capabilities.interruptRemapping
          ? tableAddress | (capabilities.extendedInterruptMode ? 0x800 : 0) | 0xf : 0),
      RegisterDescription(
        "IVA", at: RegisterOffset.invalidateAddress, width: 8, writable: 0xffff_ffff_ffff_f07f),
      RegisterDescription(
        "IOTLB", at: RegisterOffset.iotlbInvalidate, width: 8, writable: 0xb003_ffff_0000_0000),
    ]
    if capabilities.pageRequests { table += pageRequestQueue(tableAddress, upperMessageAddress) }
    for index in 0..<Capabilities.faultRecordCount {
      let offset = RegisterOffset.faultRecord + 16 * index
      table.append(RegisterDescription("FRCD\(index).lo", at: offset, width: 8))
      table.append(RegisterDescription("FRCD\(index).hi", at: offset + 8, width: 8, writeOneToClear: 1 << 63))
    }
    return table
  }

  /// Returns the registers of an event.
  /// - Parameter mnemonic: the prefix of their mnemonics: FE, IE or PE.
  static func event(
    _ mnemonic: String, _ event: EventRegisters, _ upperMessageAddress: UInt64
  ) -> [RegisterDescription] {
    [
      RegisterDescription(
        mnemonic + "CTL", at: event.control, width: 4, reset: 0x8000_0000, writable: 0x8000_0000),
      RegisterDescription(mnemonic + "DATA", at: event.data, width: 4, writable: 0xffff),
      RegisterDescription(mnemonic + "ADDR", at: event.address, width: 4, writable: 0xffff_fffc),
      RegisterDescription(mnemonic + "UADDR", at: event.upperAddress, width: 4, writable: upperMessageAddress),
    ]
  }
}

/// Global Command and Global Status have the same bits (VT-d 11.4.4).
struct GlobalCommand: OptionSet, Sendable {
  let rawValue: UInt32

  static let translationEnable = GlobalCommand(rawValue: 1 << 31)  // TE, TES
  static let setRootTablePointer = GlobalCommand(rawValue: 1 << 30)  // SRTP, RTPS
  static let writeBufferFlush = GlobalCommand(rawValue: 1 << 27)  // WBF, WBFS
  static let queuedInvalidationEnable = GlobalCommand(rawValue: 1 << 26)  // QIE, QIES
  static let interruptRemappingEnable = GlobalCommand(rawValue: 1 << 25)  // IRE, IRES
  static let setInterruptRemapTablePointer = GlobalCommand(rawValue: 1 << 24)  // SIRTP, IRTPS
  static let compatibilityFormatInterrupt = GlobalCommand(rawValue: 1 << 23)  // CFI, CFIS

  /// Commands that keep the value written last; the others are one-shot.
  static let persistent: GlobalCommand = [
    .translationEnable, .queuedInvalidationEnable, .interruptRemappingEnable, .compatibilityFormatInterrupt,
  ]
  static let known: GlobalCommand = [
    .persistent, .setRootTablePointer, .writeBufferFlush, .setInterruptRemapTablePointer,
  ]
  var rawValue64: UInt64 { UInt64(rawValue) }
}

/// Fault Status (VT-d 11.4.7.1).
struct FaultStatus: OptionSet, Sendable {
  let rawValue: UInt32

  static let primaryFaultOverflow = FaultStatus(rawValue: 1 << 0)  // PFO
  static let primaryPendingFault = FaultStatus(rawValue: 1 << 1)  // PPF
  static let invalidationQueueError = FaultStatus(rawValue: 1 << 4)  // IQE
  static let invalidationCompletionError = FaultStatus(rawValue: 1 << 5)  // ICE
  static let invalidationTimeoutError = FaultStatus(rawValue: 1 << 6)  // ITE

  /// Conditions that software clears by writing one. PPF follows the fault recording registers.
  static let clearable: FaultStatus = [
    .primaryFaultOverflow, .invalidationQueueError, .invalidationCompletionError, .invalidationTimeoutError,
  ]
  /// All conditions that raise the fault event.
  static let conditions: FaultStatus = [.clearable, .primaryPendingFault]
  /// Conditions that stop the fetching of descriptors.
  static let queueStops: FaultStatus = [.invalidationQueueError, .invalidationTimeoutError]
  var rawValue64: UInt64 { UInt64(rawValue) }
}
