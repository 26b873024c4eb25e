/// The VT-d unit from its driver's side: global commands, the invalidation queue, fault records. VT-d 4.1, chapter 11
/// for the registers and 6.5.2 for the queue's descriptors.

enum RemappingUnit {
  private static let base: UInt64 = 0xfed9_0000
  /// The ticks of the TSC that an operation may take. They are many, because a nested guest on a loaded host may be
  /// slow.
  static let patience: UInt64 = 10_000_000_000

  enum Register {
    static let capability: UInt64 = 0x08
    static let extendedCapability: UInt64 = 0x10
    static let globalCommand: UInt64 = 0x18
    static let globalStatus: UInt64 = 0x1c
    static let rootTableAddress: UInt64 = 0x20
    static let contextCommand: UInt64 = 0x28
    static let faultStatus: UInt64 = 0x34
    static let faultEventControl: UInt64 = 0x38
    static let queueHead: UInt64 = 0x80
    static let queueTail: UInt64 = 0x88
    static let queueAddress: UInt64 = 0x90
    static let completionStatus: UInt64 = 0x9c
    static let completionEventControl: UInt64 = 0xa0
    static let queueErrorRecord: UInt64 = 0xb0
    static let interruptTableAddress: UInt64 = 0xb8
  }

  /// Bits of Global Command and Global Status.
  enum Command {
    static let translationEnable: UInt32 = 1 << 31
    static let setRootTable: UInt32 = 1 << 30
    static let queueEnable: UInt32 = 1 << 26
    static let interruptRemappingEnable: UInt32 = 1 << 25
    static let setInterruptTable: UInt32 = 1 << 24
    static let compatibilityFormat: UInt32 = 1 << 23
  }

  static func read32(_ register: UInt64) -> UInt32 { load32(base + register) }
  static func read64(_ register: UInt64) -> UInt64 { load64(base + register) }
  static func write32(_ register: UInt64, _ value: UInt32) { store32(base + register, value) }
  static func write64(_ register: UInt64, _ value: UInt64) { store64(base + register, value) }

  static var isThere: Bool { read32(0) != 0 && read32(0) != .max }
  static func offers(_ bit: UInt64) -> Bool { read64(Register.extendedCapability) >> bit & 1 != 0 }
  /// Bits of the extended capability register.
  static let deviceTLB: UInt64 = 2
  static let interruptRemapping: UInt64 = 3
  static let extendedInterrupts: UInt64 = 4
  static let passThrough: UInt64 = 6
  static let nestedTranslation: UInt64 = 26
  static let pageRequests: UInt64 = 29
  static let supervisorRequests: UInt64 = 31
  static let noWriteFlag: UInt64 = 33
  static let pasids: UInt64 = 40
  static let scalableMode: UInt64 = 43
  static let secondAccessedDirty: UInt64 = 45
  static let secondStage: UInt64 = 46
  static let firstStage: UInt64 = 47
  static let pageWalkCoherency: UInt64 = 48
  static let ridPASID: UInt64 = 49

  // MARK: Events

  /// Bits of an event's control register.
  static let eventMask: UInt32 = 1 << 31
  static let eventPending: UInt32 = 1 << 30

  /// Sets an event's message. For each event, the message registers follow its control register.
  static func setEvent(_ control: UInt64, vector: UInt32, to processor: UInt32) {
    write32(control + 4, vector)
    write32(control + 8, 0xfee0_0000 | processor << 12)
    write32(control + 12, 0)
  }

  // MARK: Global commands

  /// The bits that a command must keep: VT-d 11.4.4.1.
  private static let persistent =
    Command.translationEnable | Command.queueEnable | Command.interruptRemappingEnable
    | Command.compatibilityFormat

  /// Writes a command, and waits until the status shows it.
  @discardableResult
  static func command(_ bit: UInt32, on: Bool = true) -> Bool {
    let kept = read32(Register.globalStatus) & persistent & ~bit
    write32(Register.globalCommand, kept | (on ? bit : 0))
    return wait(ticks: patience) { (read32(Register.globalStatus) & bit != 0) == on }
  }

  /// Turns translation on with another root table, and starts a queue of descriptors for its mode.
  /// - Returns: whether translation is on. If it is not, this function has reported a failure.
  static func translate(root: UInt64, isScalable: Bool) -> Bool {
    command(Command.translationEnable, on: false)
    startQueue(isWide: isScalable)
    write64(Register.rootTableAddress, root | (isScalable ? 1 << 10 : 0))
    command(Command.setRootTable)
    if invalidateEverything(isScalable: isScalable), command(Command.translationEnable) { return true }
    Report.fail("translation does not come on")
    return false
  }

  /// Turns interrupt remapping on with a table of 256 entries.
  /// - Parameter isExtended: whether the entries have 32-bit destinations (EIME).
  /// - Returns: whether remapping is on. If it is not, this function has reported a failure.
  static func remapInterrupts(by table: UInt64, isExtended: Bool) -> Bool {
    // The number of entries is 2 to the power of this field plus one.
    let tableSize: UInt64 = 7
    write64(Register.interruptTableAddress, table | (isExtended ? 1 << 11 : 0) | tableSize)
    if command(Command.setInterruptTable), invalidateInterruptEntries(), command(Command.interruptRemappingEnable) {
      return true
    }
    Report.fail("interrupt remapping does not come on")
    return false
  }

  /// The registers of register-based invalidation: VT-d 11.4.6.
  static var invalidateAddress: UInt64 { (read64(Register.extendedCapability) >> 8 & 0x3ff) * 16 }
  static var invalidateCommand: UInt64 { invalidateAddress + 8 }
  /// The first fault recording register.
  static var faultRecord: UInt64 { (read64(Register.capability) >> 24 & 0x3ff) * 16 }

  // MARK: The invalidation queue

  nonisolated(unsafe) private(set) static var queue: UInt64 = 0
  nonisolated(unsafe) private static var status: UInt64 = 0
  nonisolated(unsafe) private static var tail: UInt64 = 0
  nonisolated(unsafe) private static var descriptorSize: UInt64 = 16
  nonisolated(unsafe) private static var waits: UInt32 = 0

  static func startQueue(isWide: Bool) {
    if queue == 0 {
      queue = Pages.take()
      status = Pages.take()
    }
    command(Command.queueEnable, on: false)
    descriptorSize = isWide ? 32 : 16
    tail = 0
    write64(Register.queueTail, 0)
    write64(Register.queueAddress, queue | (isWide ? 1 << 11 : 0))
    command(Command.queueEnable)
  }

  /// Queues a descriptor, and does not write the tail.
  static func enqueue(_ low: UInt64, _ high: UInt64 = 0) {
    Pages.fill(queue + tail, descriptorSize, with: 0)
    store64(queue + tail, low)
    store64(queue + tail + 8, high)
    tail = (tail + descriptorSize) % Pages.size
  }

  /// Writes the tail, so that the unit fetches the queued descriptors.
  static func ring() { write64(Register.queueTail, tail) }

  /// Queues a wait descriptor and writes the tail.
  /// - Returns: whether the unit has written the wait's status.
  static func submitAndWait() -> Bool {
    waits &+= 1
    let number = waits
    enqueue(0x5 | 1 << 5 | UInt64(number) << 32, status)
    ring()
    return wait(ticks: patience) { load32(status) == number || read32(Register.faultStatus) & 0x70 != 0 }
      && load32(status) == number
  }

  /// Queues one descriptor and a wait descriptor, and writes the tail.
  static func submit(_ low: UInt64, _ high: UInt64 = 0) -> Bool {
    enqueue(low, high)
    return submitAndWait()
  }

  /// Invalidates all caches that translation uses.
  @discardableResult
  static func invalidateEverything(isScalable: Bool) -> Bool {
    invalidateContexts() && (!isScalable || invalidatePASIDs()) && invalidateTranslations()
  }

  static func invalidateContexts() -> Bool { submit(0x1 | 1 << 4) }
  static func invalidatePASIDs() -> Bool { submit(0x7 | 3 << 4) }
  static func invalidatePASID(_ pasid: UInt64, domain: UInt64) -> Bool {
    submit(0x7 | 1 << 4 | domain << 16 | pasid << 32)
  }
  static func invalidateTranslations() -> Bool { submit(0x2 | 1 << 4) }
  static func invalidateTranslations(domain: UInt64) -> Bool { submit(0x2 | 2 << 4 | domain << 16) }
  /// Invalidates the cached second-stage page at an address.
  static func invalidatePage(_ address: UInt64, domain: UInt64) -> Bool {
    submit(0x2 | 3 << 4 | domain << 16, address)
  }
  /// Invalidates the cached first-stage page at an address.
  static func invalidatePage(_ address: UInt64, pasid: UInt64, domain: UInt64) -> Bool {
    submit(0x6 | 3 << 4 | domain << 16 | pasid << 32, address)
  }
  static func invalidateTranslations(pasid: UInt64, domain: UInt64) -> Bool {
    submit(0x6 | 2 << 4 | domain << 16 | pasid << 32)
  }
  static func invalidateInterruptEntries() -> Bool { submit(0x4) }
  static func invalidateInterruptEntry(_ index: UInt64) -> Bool { submit(0x4 | 1 << 4 | index << 32) }

  // MARK: Faults

  struct Fault {
    var low: UInt64
    var high: UInt64

    var reason: UInt64 { high >> 32 & 0xff }
    var source: UInt64 { high & 0xffff }
    var isRead: Bool { high >> 62 & 1 != 0 }
    var hasPASID: Bool { high >> 31 & 1 != 0 }
    /// The page's address, for a DMA request.
    var address: UInt64 { low & ~0xfff }
    /// The index of the interrupt remapping table entry, for an interrupt request.
    var index: UInt64 { low >> 48 }
  }

  private static let pendingFault: UInt32 = 1 << 1
  static var hasPendingFault: Bool { read32(Register.faultStatus) & pendingFault != 0 }

  /// Takes the fault that FSTS.FRI points at, and clears its record.
  static func takeFault() -> Fault? {
    let status = read32(Register.faultStatus)
    guard status & pendingFault != 0 else { return nil }
    let record = faultRecord + UInt64(status >> 8 & 0xff) * 16
    let fault = Fault(low: read64(record), high: read64(record + 8))
    guard fault.high >> 63 != 0 else { return nil }
    write64(record + 8, 1 << 63)
    return fault
  }

  /// Checks that exactly this fault is recorded, and takes the fault.
  static func checkFault(
    _ name: StaticString, reason: UInt64, source: UInt64, low: UInt64, isRead: Bool
  ) {
    let fault = takeFault()
    if let fault, fault.reason == reason, fault.source == source, fault.low == low, fault.isRead == isRead,
      !fault.hasPASID, !hasPendingFault
    {
      return Report.pass(name)
    }
    fail(name, recorded: fault, wanted: (reason, low))
  }

  static func checkNoFault(_ name: StaticString) {
    guard let fault = takeFault() else { return Report.pass(name) }
    fail(name, recorded: fault)
  }

  /// Reports a failure, with the recorded fault.
  static func fail(_ name: StaticString, recorded fault: Fault?, wanted: (reason: UInt64, low: UInt64)? = nil) {
    put("FAIL ")
    put(name)
    if let fault {
      put(": recorded 0x")
      put(Hexadecimal(fault.high))
      put(" 0x")
      put(Hexadecimal(fault.low))
    } else {
      put(": no fault is recorded")
    }
    if let wanted {
      put(", expected reason 0x")
      put(Hexadecimal(wanted.reason))
      put(" at 0x")
      put(Hexadecimal(wanted.low))
    }
    endLine()
    Report.countFailure()
  }
}
