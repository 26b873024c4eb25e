import Hardware
import PCI
import TestSupport
import Testing

/// An operating system's driver of a native slot. It makes the same accesses as Linux 6.12's pciehp, in the same order,
/// has the same states and drops the same events. It never sleeps: its timer fires when nothing else is left to do.
///
/// An interrupt is served between two accesses, right when it arrives. A lost interrupt leaves the driver stuck.
final class HotplugDriver {
  enum State { case off, on, blinkingOff, blinkingOn, poweringOn, poweringOff }

  private enum Register {
    static let linkControl = 0x10
    static let linkStatus = 0x12
    static let capabilities = 0x14
    static let control = 0x18
    static let status = 0x1a
  }

  private enum Event {
    static let button: UInt16 = 1 << 0
    static let presence: UInt16 = 1 << 3
    static let command: UInt16 = 1 << 4
    static let link: UInt16 = 1 << 8
    static let all: UInt16 = button | presence | command | link
    /// The driver's own event: the indicator has finished blinking.
    static let disable: UInt16 = 1 << 15
  }

  private(set) var state = State.off
  /// The identity register of the device in use, as the driver read it.
  private(set) var device: UInt32?
  /// How often a device came into use, and how often a button press was seen.
  private(set) var additions = 0
  private(set) var presses = 0
  /// The number of moments so far: one before each access, and one in each sleep.
  private(set) var moments = 0
  /// Called at each moment with its number.
  var atMoment: (Int) -> Void = { _ in }

  private let port: RootPort
  private let access: EnhancedConfigurationAccess
  private let router: RecordingRouter
  private let express: Int
  private var served = 0
  private var isServing = false
  private var pending: UInt16 = 0
  private var isCommandPending = false
  private var isTimerArmed = false
  private var hasButton = false

  init(_ port: RootPort, access: EnhancedConfigurationAccess, router: RecordingRouter, express: Int) {
    self.port = port
    self.access = access
    self.router = router
    self.express = express
    served = router.deliveries.count
  }

  /// Scans the bus and starts the driver.
  func start() {
    port.function.write32(0x18, 0x0001_0100)
    let msi = 0x40
    port.function.write32(msi + 4, 0xfee0_0000)
    port.function.write16(msi + 12, 0x51)
    port.function.write16(msi + 2, 1)
    port.function.command([.busMasterEnable, .memorySpaceEnable])
    if let found = identity() {
      device = found
      state = .on
    }
    hasButton = read(Register.capabilities) & 1 != 0
    write(Register.status, Event.all)
    if !isOccupied, read(Register.control) & 0x400 == 0 {
      command(0, mask: 0x1039)
      command(0x400, mask: 0x400)
    }
    command(hasButton ? 0x1031 : 0x1038, mask: 0x103b)
    let occupied = isOccupied
    if occupied, state == .off || state == .blinkingOn { pending |= Event.presence }
    if !occupied, state == .on || state == .blinkingOff { pending |= Event.presence }
    run()
  }

  /// Runs until nothing is left to do.
  func run() {
    for _ in 0..<1000 {
      serve()
      if pending != 0 {
        handleEvents()
      } else if isTimerArmed {
        isTimerArmed = false
        pause()
        switch state {
        case .blinkingOff: pending |= Event.disable
        case .blinkingOn: pending |= Event.presence
        default: break
        }
      } else {
        return
      }
    }
    Issue.record("the driver never becomes idle")
  }

  // MARK: Accesses

  private func pause() {
    let moment = moments
    moments += 1
    atMoment(moment)
  }

  private func read(_ register: Int) -> UInt16 {
    pause()
    let value = port.function.read16(express + register)
    serve()
    return value
  }

  private func write(_ register: Int, _ value: UInt16) {
    pause()
    port.function.write16(express + register, value)
    serve()
  }

  private func identity() -> UInt32? {
    pause()
    let value = UInt32(access.read(offset: 1 << 20, width: .doubleword))
    serve()
    return value == .max ? nil : value
  }

  private var isOccupied: Bool {
    read(Register.status) & 0x40 != 0 || read(Register.linkStatus) & 0x2000 != 0
  }

  private func command(_ value: UInt16, mask: UInt16) {
    let old = read(Register.control)
    isCommandPending = true
    write(Register.control, old & ~mask | value & mask)
    if isCommandPending {
      // Interrupts are disabled, so the driver polls.
      #expect(read(Register.status) & Event.command != 0, "a command is not completed")
      write(Register.status, Event.command)
      isCommandPending = false
    }
  }

  // MARK: Interrupts

  private func serve() {
    while !isServing, router.deliveries.count > served {
      served = router.deliveries.count
      isServing = true
      var events: UInt16 = 0
      while true {
        let status = read(Register.status) & Event.all
        guard status != 0 else { break }
        events |= status
        write(Register.status, events)
      }
      isServing = false
      if events & Event.command != 0 { isCommandPending = false }
      if events & Event.button != 0 { presses += 1 }
      pending |= events & ~Event.command
    }
  }

  private func handleEvents() {
    let events = pending
    pending = 0
    if events & Event.button != 0 { buttonPressed() }
    if events & Event.disable != 0 {
      isTimerArmed = false
      switchOff()
    } else if events & (Event.presence | Event.link) != 0 {
      presenceOrLinkChanged()
    }
  }

  private func buttonPressed() {
    switch state {
    case .on, .off:
      state = state == .on ? .blinkingOff : .blinkingOn
      command(0x2c0, mask: 0x3c0)
      isTimerArmed = true
    case .blinkingOff, .blinkingOn:
      isTimerArmed = false
      state = state == .blinkingOff ? .on : .off
      command(state == .on ? 0x1c0 : 0x3c0, mask: 0x3c0)
    case .poweringOn, .poweringOff: break
    }
  }

  private func presenceOrLinkChanged() {
    if state == .on || state == .blinkingOff {
      isTimerArmed = false
      switchOff()
    }
    guard isOccupied else {
      if state == .blinkingOn {
        state = .off
        isTimerArmed = false
        command(0x300, mask: 0x300)
      }
      return
    }
    if state == .off || state == .blinkingOn {
      isTimerArmed = false
      switchOn()
    }
  }

  private func switchOn() {
    state = .poweringOn
    if read(Register.control) & 0x400 != 0 {
      let isAdded = addBoard()
      if !isAdded { command(0x300, mask: 0x300) }
    }
    state = .on
  }

  private func addBoard() -> Bool {
    command(0, mask: 0x400)
    write(Register.linkControl, read(Register.linkControl) & ~0x10)
    command(0x200, mask: 0x300)
    guard read(Register.linkStatus) & 0x2000 != 0, let found = identity() else {
      powerOff()
      command(0x340, mask: 0x3c0)
      return false
    }
    pending &= ~(Event.presence | Event.link)
    device = found
    additions += 1
    command(0x1c0, mask: 0x3c0)
    return true
  }

  private func switchOff() {
    state = .poweringOff
    if read(Register.control) & 0x400 == 0 {
      pause()
      device = nil
      powerOff()
      command(0x300, mask: 0x300)
    }
    state = .off
  }

  /// Turns power off, waits the second that Linux waits, and drops the events of that second, as Linux does.
  private func powerOff() {
    command(0x400, mask: 0x400)
    pause()
    pending &= ~(Event.presence | Event.link)
  }
}
