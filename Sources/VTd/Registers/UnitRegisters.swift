import Hardware

/// The registers and the state that a write changes directly: latched pointers, the queue's head, pending events. A
/// plain value. Methods return the work outside of the registers as `Effects`.
struct UnitRegisters: Sendable {
  /// The work that a write, a fault or a completion leaves for the rest of the unit.
  struct Effects: Sendable {
    var faultEvent: InterruptMessage?
    var invalidationEvent: InterruptMessage?
    var pageRequestEvent: InterruptMessage?
    /// A register-based invalidation. The command's register reads as busy until `complete(_:)`.
    var command: RegisterCommand?
    /// Whether the queue may contain descriptors to fetch.
    var serviceQueue = false
    /// Whether software wrote the queue's tail.
    var doorbell = false
    /// Whether TE changed.
    var translationEnableChanged = false
    /// Whether software set the root table (SRTP), possibly to the same address.
    var rootTableSet = false
    /// Whether requests in flight may still use the old tables.
    var translationChanged: Bool { rootTableSet || translationEnableChanged }
    /// Whether software wrote SIRTP or changed IRE or CFI.
    var interruptRemappingChanged = false
    /// Whether Global Status shows the change only after `completeGlobalCommands`.
    var awaitsDrain: Bool { translationChanged || interruptRemappingChanged }
  }

  /// An invalidation requested through CCMD or IOTLB.
  struct RegisterCommand: Sendable {
    enum Register: Sendable { case contextCommand, iotlbInvalidate }
    let register: Register
    /// The requested invalidation. Nil if the request is invalid, or if the unit is not in legacy mode.
    let invalidation: Invalidation?
  }

  let capabilities: Capabilities
  var file: RegisterFile
  /// RTADDR as SRTP latched it: table address and TTM.
  private(set) var rootTable: UInt64 = 0
  /// IRTA as SIRTP latched it.
  private(set) var interruptTable: UInt64 = 0
  var queue = InvalidationQueue()
  /// Index of the fault recording register for the next fault.
  var nextFaultRecord = 0
  /// The state in force. Global Status shows it once the command is complete.
  private(set) var globalStatus: GlobalCommand = []
  /// The number of commands that changed translation or interrupt remapping, and that are not complete because requests
  /// in flight may still use the old tables.
  private var incompleteCommands = 0

  init(_ capabilities: Capabilities) {
    self.capabilities = capabilities
    file = RegisterFile(RegisterDescription.all(capabilities))
  }

  mutating func reset() {
    file.reset()
    rootTable = 0
    interruptTable = 0
    // A new generation keeps a descriptor in execution from moving the new queue's head.
    queue = InvalidationQueue(generation: queue.generation &+ 1)
    nextFaultRecord = 0
    globalStatus = []
    incompleteCommands = 0
  }

  var faultStatus: FaultStatus {
    get { FaultStatus(rawValue: file[doubleword: RegisterOffset.faultStatus] & FaultStatus.conditions.rawValue) }
    set {
      let others = file[doubleword: RegisterOffset.faultStatus] & ~FaultStatus.conditions.rawValue
      file[doubleword: RegisterOffset.faultStatus] = others | newValue.rawValue
    }
  }

  /// The translation mode in force.
  var translationMode: TranslationMode {
    TranslationMode(
      enabled: globalStatus.contains(.translationEnable), rootTable: rootTable & ~0xfff,
      tableMode: TranslationMode.TableMode(field: rootTable[bits: 10...11]))
  }

  /// The interrupt remapping mode in force.
  var interruptMode: InterruptRemappingMode {
    InterruptRemappingMode(
      enabled: globalStatus.contains(.interruptRemappingEnable),
      allowsCompatibilityFormat: globalStatus.contains(.compatibilityFormatInterrupt),
      extended: interruptTable[bit: 11], table: interruptTable & ~0xfff,
      entries: 2 << Int(interruptTable[bits: 0...3]))
  }

  // MARK: Software's writes

  /// Applies a write of software. A write beyond the page changes nothing.
  mutating func write(offset: Int, width: Int, value: UInt64) -> Effects {
    var effects = Effects()
    guard offset >= 0, width > 0, offset <= RegisterFile.size - width else { return effects }
    // The command register reads as zero, but a write to some of its bytes must not change the commands in other bytes.
    file[doubleword: RegisterOffset.globalCommand] = globalStatus.intersection(.persistent).rawValue
    let words = offset / 4...(offset + width - 1) / 4
    for word in words {
      let distance = word * 4 - offset
      let lanes: UInt64 = .lowBits(8 * width)
      if distance >= 0 {
        file.write(
          word: word, value: UInt32(truncatingIfNeeded: value >> (8 * distance)),
          lanes: UInt32(truncatingIfNeeded: lanes >> (8 * distance)))
      } else {
        file.write(
          word: word, value: UInt32(truncatingIfNeeded: value << (8 * -distance)),
          lanes: UInt32(truncatingIfNeeded: lanes << (8 * -distance)))
      }
    }
    for word in words { act(on: word * 4, &effects) }
    file[doubleword: RegisterOffset.globalCommand] = 0
    return effects
  }

  /// Acts on a write to the 32 bits at `offset`.
  private mutating func act(on offset: Int, _ effects: inout Effects) {
    switch offset {
    case RegisterOffset.globalCommand:
      globalCommandWritten(&effects)
    case RegisterOffset.contextCommand + 4:
      contextCommandWritten(&effects)
    case RegisterOffset.iotlbInvalidate + 4:
      iotlbInvalidateWritten(&effects)
    case RegisterOffset.faultStatus:
      clearServicedFaultEvent()
      // The queue resumes when software clears IQE or ITE.
      effects.serviceQueue = true
    case RegisterOffset.faultEventControl:
      effects.faultEvent = unmasked(.fault)
    case RegisterOffset.invalidationEventControl:
      effects.invalidationEvent = unmasked(.invalidation)
    case RegisterOffset.invalidationCompletionStatus:
      if file[doubleword: offset] & 1 == 0 { file[doubleword: EventRegisters.invalidation.control][bit: 30] = false }
    case RegisterOffset.pageRequestStatus where capabilities.pageRequests:
      clearServicedPageRequestEvent()
    case RegisterOffset.pageRequestEventControl where capabilities.pageRequests:
      effects.pageRequestEvent = unmasked(.pageRequest)
    case RegisterOffset.invalidationQueueTail:
      effects.doorbell = true
      effects.serviceQueue = true
    default:
      if isFaultRecordUpperWord(offset) { faultRecordCleared() }
    }
  }

  private mutating func globalCommandWritten(_ effects: inout Effects) {
    let command = GlobalCommand(rawValue: file[doubleword: RegisterOffset.globalCommand])
    var status = globalStatus
    if command.contains(.setRootTablePointer) {
      rootTable = file[quadword: RegisterOffset.rootTableAddress]
      status.insert(.setRootTablePointer)
      effects.rootTableSet = true
      // RTPS stays clear until the command is complete (VT-d 11.4.4.2).
      file[doubleword: RegisterOffset.globalStatus] &= ~GlobalCommand.setRootTablePointer.rawValue
    }
    if capabilities.interruptRemapping {
      if command.contains(.setInterruptRemapTablePointer) {
        interruptTable = file[quadword: RegisterOffset.interruptRemappingTableAddress]
        status.insert(.setInterruptRemapTablePointer)
        effects.interruptRemappingChanged = true
        // IRTPS stays clear until the command is complete.
        file[doubleword: RegisterOffset.globalStatus] &= ~GlobalCommand.setInterruptRemapTablePointer.rawValue
      }
      let followed: GlobalCommand = [.interruptRemappingEnable, .compatibilityFormatInterrupt]
      if command.intersection(followed) != status.intersection(followed) {
        status = status.subtracting(followed).union(command.intersection(followed))
        effects.interruptRemappingChanged = true
      }
    }
    if command.contains(.translationEnable) != status.contains(.translationEnable) {
      status.formSymmetricDifference(.translationEnable)
      effects.translationEnableChanged = true
    }
    if command.contains(.queuedInvalidationEnable) != status.contains(.queuedInvalidationEnable) {
      status.formSymmetricDifference(.queuedInvalidationEnable)
      queue = InvalidationQueue(
        address: file[quadword: RegisterOffset.invalidationQueueAddress], generation: queue.generation &+ 1)
      file[quadword: RegisterOffset.invalidationQueueHead] = 0
      effects.serviceQueue = true
    }
    // WBF: CAP.RWBF is clear, so there is nothing to flush, and WBFS stays clear.
    globalStatus = status
    if effects.awaitsDrain { incompleteCommands += 1 }
    showGlobalStatus()
  }

  /// Ends commands. Called when no request in flight uses the old tables or mode any more.
  mutating func completeGlobalCommands(_ count: Int) {
    // A reset may have cleared the count since the commands began.
    incompleteCommands = max(incompleteCommands - count, 0)
    showGlobalStatus()
  }

  private mutating func showGlobalStatus() {
    var shown = globalStatus
    if incompleteCommands > 0 {
      let drained: GlobalCommand = [
        .translationEnable, .setRootTablePointer, .interruptRemappingEnable, .setInterruptRemapTablePointer,
        .compatibilityFormatInterrupt,
      ]
      let before = GlobalCommand(rawValue: file[doubleword: RegisterOffset.globalStatus])
      shown = shown.subtracting(drained).union(before.intersection(drained))
    }
    file[doubleword: RegisterOffset.globalStatus] = shown.rawValue
  }

  // MARK: Register-based invalidation (VT-d 6.5.1)

  /// Only legacy mode has register-based invalidation. In other modes a request completes without effect (CAIG and IAIG
  /// 00b).
  private var takesRegisterCommands: Bool { translationMode.tableMode == .legacy }

  private mutating func contextCommandWritten(_ effects: inout Effects) {
    let command = file[quadword: RegisterOffset.contextCommand]
    guard command[bit: 63] else { return }  // ICC
    let domain = UInt16(truncatingIfNeeded: command)
    let invalidation: Invalidation? =
      switch takesRegisterCommands ? InvalidationGranularity(rawValue: command[bits: 61...62]) : nil {
      case .global: .allContexts
      case .domain: .contextsOfDomain(domain)
      case .selective:
        .contextsOfDevice(
          RequesterID(rawValue: UInt16(truncatingIfNeeded: command >> 16)),
          FunctionMask(rawValue: UInt8(truncatingIfNeeded: command[bits: 32...33])))
      case nil: nil
      }
    effects.command = RegisterCommand(register: .contextCommand, invalidation: invalidation)
  }

  private mutating func iotlbInvalidateWritten(_ effects: inout Effects) {
    let command = file[quadword: RegisterOffset.iotlbInvalidate]
    guard command[bit: 63] else { return }  // IVT
    let domain = UInt16(truncatingIfNeeded: command >> 32)
    let address = file[quadword: RegisterOffset.invalidateAddress]
    let addressMask = Int(address[bits: 0...5])
    let invalidation: Invalidation? =
      switch takesRegisterCommands ? InvalidationGranularity(rawValue: command[bits: 60...61]) : nil {
      case .global: .allTranslations
      case .domain: .translationsOfDomain(domain)
      case .selective where addressMask <= Capabilities.maximumAddressMask:
        .pagesOfDomain(
          domain,
          PageRange(address: address, addressMask: addressMask, width: capabilities.maximumGuestAddressWidth),
          leafOnly: address[bit: 6])
      case .selective, nil: nil
      }
    effects.command = RegisterCommand(register: .iotlbInvalidate, invalidation: invalidation)
  }

  /// Shows the completed granularity in the register, or 0 if the request had no effect.
  mutating func complete(_ command: RegisterCommand) {
    switch command.register {
    case .contextCommand:
      var value = file[quadword: RegisterOffset.contextCommand]
      value[bits: 59...60] = command.invalidation == nil ? 0 : value[bits: 61...62]  // CAIG
      value[bit: 63] = false
      file[quadword: RegisterOffset.contextCommand] = value
    case .iotlbInvalidate:
      var value = file[quadword: RegisterOffset.iotlbInvalidate]
      value[bits: 57...58] = command.invalidation == nil ? 0 : value[bits: 60...61]  // IAIG
      value[bit: 63] = false
      file[quadword: RegisterOffset.iotlbInvalidate] = value
    }
  }
}
