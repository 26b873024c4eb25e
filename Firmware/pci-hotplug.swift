/// Tests hotplug from the guest's side: ACPI hotplug or native hotplug, depending on the port. In each round an edu
/// appears below the port at 00:04.0. The guest switches it on, enumerates it, and makes it do translated DMA. Then the
/// guest releases it, or it is removed by surprise. `rounds=` on the command line is the number of rounds. PCI Express
/// Base 6.7, 7.5.3.9 to 7.5.3.11; ACPI 6.5, 5.6.4; QEMU's docs/specs/acpi_pci_hotplug.rst.
///
///     Tests/lab/hotplug-kernel NESTLING "$(Firmware/build)/pci-hotplug" acpi
///
/// Lines on the console give the script Tests/lab/hotplug-kernel the state of round N:
/// - `WANTS N`: the script must plug a device now.
/// - `HAS N`: the guest has used the device; the script must unplug it now.
/// - `GONE N`: the guest has released the device.

private let absent: UInt32 = 0xffff_ffff
private let page: UInt64 = 0x5a_1234_5000
private let target: UInt64 = 0x5a_1234_6000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
private let bus: UInt32 = 1

/// The port's Slot Control and Slot Status, as one register of 32 bits. Writing a one clears an event.
private struct NativeSlot {
  enum Event {
    static let attentionButton: UInt32 = 1 << 16
    static let presence: UInt32 = 1 << 19
    static let command: UInt32 = 1 << 20
    static let presenceState: UInt32 = 1 << 22
    static let link: UInt32 = 1 << 24
  }

  enum Command {
    static let on: UInt32 = 0x0100
    static let blink: UInt32 = 0x0200
    static let blinkOff: UInt32 = 0x0600
    static let off: UInt32 = 0x0700
  }

  /// Enables the hotplug interrupt and the events attention button, presence, command completed and link; the attention
  /// indicator is off.
  private static let enables: UInt32 = 0x1039 | 0x00c0

  let port: Function
  let express: UInt32

  var register: UInt32 { port.readPort(express + 0x18) }
  var isLinkActive: Bool { port.readPort(express + 0x10) & 1 << 29 != 0 }

  /// Clears all events so far, and marks their interrupts as seen. It does not write Slot Control, because that would
  /// be a command.
  func clear() {
    interruptsSeen = Interrupts.count(Interrupts.device)
    // The read above selects the register.
    let status = UInt16(truncatingIfNeeded: register >> 16)
    portWrite16(0xcfe, status)
  }

  /// Writes a command, and waits for its completion.
  func command(_ bits: UInt32) -> Bool {
    port.writePort(express + 0x18, Self.enables | bits | Event.command)
    return wait(ticks: RemappingUnit.patience) { register & Event.command != 0 }
  }

  /// Waits for the interrupt of an event, and clears all events.
  /// - Returns: Slot Status before it is cleared; nil if no event comes in time.
  func event(_ events: UInt32) -> UInt32? {
    var status: UInt32 = 0
    let came = wait(ticks: patience) {
      if Interrupts.count(Interrupts.device) == interruptsSeen { return false }
      status = register
      return status & events != 0
    }
    guard came else { return nil }
    clear()
    return status
  }
}

/// The number of interrupts whose events are cleared.
nonisolated(unsafe) private var interruptsSeen: UInt32 = 0

/// The ACPI controller and its general-purpose event.
private enum Controller {
  private static let eventStatus: UInt16 = 0x620
  private static let event: UInt8 = 1 << 1
  private static let up: UInt16 = 0xcc0
  private static let down: UInt16 = 0xcc4
  private static let ejection: UInt16 = 0xcc8
  private static let select: UInt16 = 0xcd0

  /// Waits for the general-purpose event.
  /// - Returns: whether a device was plugged into slot 0, and whether its removal is requested; nil if no event comes
  ///   in time.
  static func notification() -> (up: Bool, down: Bool)? {
    guard wait(ticks: patience, until: { portRead8(eventStatus) & event != 0 }) else { return nil }
    portWrite8(eventStatus, event)
    portWrite32(select, 0)
    return (portRead32(up) == 1, portRead32(down) == 1)
  }

  static func eject() {
    portWrite32(select, 0)
    portWrite32(ejection, 1)
  }
}

/// The ticks to wait for an event. They are many, because the script that plugs devices may be slow.
private let patience: UInt64 = 40_000_000_000

private func printLine(_ text: StaticString, _ round: UInt64) {
  put(text)
  put(round)
  endLine()
}

private func capability(_ id: UInt32, of function: Function) -> UInt32 {
  var at = function.readPort(0x34) & 0xff
  while at != 0, function.readPort(at) & 0xff != id { at = function.readPort(at) >> 8 & 0xff }
  return at
}

private func setMessage(of port: Function) {
  let message = capability(0x05, of: port)
  port.writePort(message + 4, 0xfee0_0000 | LocalAPIC.identifier << 12)
  port.writePort(message + 8, 0)
  port.writePort(message + 12, Interrupts.device)
  port.writePort(message, port.readPort(message) | 0x0001_0000)
}

private struct Guest {
  let port: Function
  /// The port's slot registers; nil with ACPI hotplug.
  let slot: NativeSlot?
  /// The memory address of devices below the port.
  let room: UInt64
  let root: UInt64
  /// The root table's entry for bus 1 while there is a device.
  let context: UInt64
  let source = Pages.take()
  let destination = Pages.take()

  init?(port: Function, slot: NativeSlot?) {
    self.port = port
    self.slot = slot
    room = UInt64(port.readPort(0x20) & 0xfff0) << 16
    let tables = PagingTables(.first)
    let leaf = PagingTables.present | PagingTables.writable | PagingTables.user
    tables.map(page, to: source, leaf)
    tables.map(target, to: destination, leaf)
    let sources = SourceTables(source: 0)
    SourceTables.setFirstStage(sources.makeScalable(), table: tables.root)
    root = sources.root
    context = load64(root)
    store64(root, 0)
    guard RemappingUnit.translate(root: root, isScalable: true) else { return nil }
  }

  private var function: Function { Function(device: 0, number: 0, bus: bus) }
  private var isEmpty: Bool { function.readPort(0) == absent && load32(room) == absent }

  private func setTables(_ isPresent: Bool) {
    store64(root + UInt64(bus) * 16, isPresent ? context : 0)
    _ = RemappingUnit.invalidateEverything(isScalable: true)
  }

  private func arrival() -> Bool {
    guard let slot else { return Controller.notification()?.up == true }
    guard let status = slot.event(NativeSlot.Event.presence | NativeSlot.Event.link) else { return false }
    Report.check("a device appears without the attention button", status & NativeSlot.Event.attentionButton == 0)
    Report.check("the slot reports presence", slot.register & NativeSlot.Event.presenceState != 0)
    Report.check("without slot power no device answers", function.readPort(0) == absent)
    Report.check(
      "the slot's power goes on", slot.command(NativeSlot.Command.blink) && slot.command(NativeSlot.Command.on))
    guard wait(ticks: RemappingUnit.patience, until: { slot.isLinkActive }) else { return false }
    // Clear the event of the link that is now up.
    slot.clear()
    return true
  }

  private func use() {
    guard wait(ticks: RemappingUnit.patience, until: { function.readPort(0) != absent }) else {
      return Report.fail("no device answers below the port")
    }
    Report.check(
      "registers have their values after reset", function.readPort(4) & 0xffff == 0 && function.readPort(0x10) == 0)
    function.writePort(0x10, UInt32(truncatingIfNeeded: room))
    guard let edu = Edu(function) else { return Report.fail("the device is not edu") }
    Report.check("edu is alive", edu.isAlive)
    _ = edu.read(from: page)
    if let fault = RemappingUnit.takeFault() {
      Report.check("DMA is refused before edu has tables", fault.source == bus << 8)
    } else {
      Report.fail("DMA before edu has tables causes no fault")
    }
    setTables(true)
    store64(source, marker)
    store64(destination, 0)
    Report.check("DMA with tables is translated", edu.copy(from: page, to: target) && load64(destination) == marker)
    RemappingUnit.checkNoFault("translated DMA causes no fault")
  }

  /// Waits until the removal of the device is requested, or the device is gone.
  private func departure() -> Bool {
    guard let slot else { return Controller.notification()?.down == true }
    return slot.event(
      NativeSlot.Event.attentionButton | NativeSlot.Event.presence | NativeSlot.Event.link) != nil
  }

  private func giveUp() {
    let isPulled = function.readPort(0) == absent
    put(isPulled ? "pulled\n" : "asked\n")
    setTables(false)
    guard let slot else { return Controller.eject() }
    if !isPulled { _ = slot.command(NativeSlot.Command.blink) }
    Report.check(
      "the slot's power goes off", slot.command(NativeSlot.Command.blinkOff) && slot.command(NativeSlot.Command.off))
  }

  func round(_ number: UInt64) -> Bool {
    Report.check("the slot is empty", isEmpty)
    printLine("WANTS ", number)
    guard arrival() else { return false }
    use()
    printLine("HAS ", number)
    guard departure() else { return false }
    giveUp()
    Report.check("no device answers below the port any more", isEmpty)
    if let slot {
      Report.check(
        "the slot reports no presence",
        wait(ticks: RemappingUnit.patience) {
          slot.register & NativeSlot.Event.presenceState == 0
        })
      slot.clear()
    }
    printLine("GONE ", number)
    return true
  }
}

func kernelMain() {
  let port = Function(device: 4, number: 0)
  let express = capability(0x10, of: port)
  guard express != 0 else { return Report.fail("there is no root port") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.scalableMode),
    RemappingUnit.offers(RemappingUnit.firstStage)
  else { return Report.fail("the unit offers no first stage") }
  LocalAPIC.start()
  port.writePort(4, 0x6)
  let capabilities = port.readPort(express + 0x14)
  Report.check("the slot is hot-plug capable", capabilities & 1 << 6 != 0)
  var slot: NativeSlot?
  // Only a native slot has an attention button.
  if capabilities & 1 != 0 {
    setMessage(of: port)
    enableInterrupts()
    let native = NativeSlot(port: port, express: express)
    Report.check("an empty slot is off", native.register & 0x0700 == NativeSlot.Command.off)
    Report.check("a slot command completes", native.command(NativeSlot.Command.off))
    native.clear()
    slot = native
  }
  put(slot == nil ? "by ACPI\n" : "natively\n")
  guard let guest = Guest(port: port, slot: slot) else { return }
  for number in 1...(Multiboot.number("rounds") ?? 1) where !Report.hasFailed {
    if !guest.round(number) { Report.fail("no device appears, or its removal is not requested") }
  }
  disableInterrupts()
}
