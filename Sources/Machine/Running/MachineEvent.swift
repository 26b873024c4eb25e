import Hardware

/// What the machine's own thread is to act on. Whoever brings it about posts it.
enum MachineEvent: Hashable, Sendable {
  // What the guest does. All of it ends what runs.

  /// The guest switched itself off.
  case shutdown
  /// The guest reset itself.
  case reset
  /// A CPU could not even deliver a double fault, which resets the guest.
  case tripleFault(processor: Int, instructionPointer: UInt64?)
  /// The guest ended Nestling with a status (isa-debug-exit).
  case debugExit(status: Int32)
  /// The guest cannot go on: what KVM reported.
  case crashed(String)

  // What its host asks for.

  /// The end of Nestling.
  case quit(MachineCause)
  case hostReset
  /// What a monitor waits for.
  case request(PendingRequest)
  /// A passed-through device met an error: the guest must not run on.
  case deviceError
  /// The host wants a device back: the guest is asked for it, and loses it after so many milliseconds.
  case hostRequest(DeviceIdentity, patience: UInt32)
  /// A device goes at once, without the guest being asked.
  case surpriseRemoval(DeviceIdentity)

  // What goes on meanwhile.

  /// The guest has dropped what was pulled out from below a port.
  case slotReleased(RequesterID)
  /// Devices have left their buses, and are to be taken down.
  case left([DeviceIdentity])
  /// The rest of what waited for the host.
  case continuation(Continuation)

  /// Whether it is the host's wish, which holds whatever the guest does meanwhile.
  var isRequest: Bool {
    switch self {
    case .quit, .hostReset, .request, .deviceError, .hostRequest, .surpriseRemoval, .slotReleased, .left,
      .continuation:
      true
    case .shutdown, .reset, .tripleFault, .debugExit, .crashed: false
    }
  }

  /// Whether the guest stops as soon as it is posted.
  var haltsGuest: Bool {
    switch self {
    case .request(let pending): pending.request.haltsGuest
    case .hostRequest, .surpriseRemoval, .slotReleased, .left, .continuation: false
    case .shutdown, .reset, .tripleFault, .debugExit, .crashed, .quit, .hostReset, .deviceError: true
    }
  }

  /// What the machine's thread goes on with, once; or what is done instead where the machine ends before.
  final class Continuation: Hashable, Sendable {
    let run: @Sendable () -> Void
    let cancel: @Sendable () -> Void

    init(_ run: @escaping @Sendable () -> Void, orElse cancel: @escaping @Sendable () -> Void) {
      self.run = run
      self.cancel = cancel
    }

    static func == (a: Continuation, b: Continuation) -> Bool { a === b }
    func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(self)) }
  }
}

/// Who brought about a reset or the end (QEMU's ShutdownCause).
public enum MachineCause: Hashable, Sendable {
  /// The guest switched itself off.
  case guestShutdown
  /// The guest reset itself, or a CPU had a triple fault.
  case guestReset
  /// The guest could not go on.
  case guestCrash
  /// A monitor's `quit`.
  case monitorQuit
  /// A monitor's `system_reset`.
  case monitorReset
  /// SIGTERM, SIGINT or SIGHUP.
  case signal
  /// The person at the terminal.
  case terminal
}
