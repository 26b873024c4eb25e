import Hardware

/// An event that the machine's thread must handle.
enum MachineEvent: Hashable, Sendable {
  // Events of the guest. Each of them stops the CPUs.

  /// The guest switched itself off.
  case shutdown
  /// The guest reset itself.
  case reset
  /// A CPU had a triple fault, which resets the guest.
  case tripleFault(processor: Int, instructionPointer: UInt64?)
  /// The guest ended Nestling with an exit status (isa-debug-exit).
  case debugExit(status: Int32)
  case crashed(GuestCrash)

  // Requests of the host.

  /// A request to end Nestling.
  case quit(MachineCause)
  case hostReset
  /// A request whose requester waits for an answer.
  case request(PendingRequest)
  /// A passed-through device reported an error. The guest must not continue.
  case deviceError
  /// The host wants a device back. The guest is asked to give it up, and loses it after `patience` milliseconds.
  case hostRequest(DeviceIdentity, patience: UInt32)
  /// A device must go at once, without asking the guest.
  case surpriseRemoval(DeviceIdentity)

  // Steps of hotplug.

  /// The guest has released the devices below a port after their surprise removal.
  case slotReleased(RequesterID)
  /// Devices have left their buses. Their host resources must be released.
  case left([DeviceIdentity])
  /// Work that waited for the host can continue.
  case continuation(Continuation)

  /// Whether the event stays in the queue when the guest's own events are dropped.
  var isRequest: Bool {
    switch self {
    case .quit, .hostReset, .request, .deviceError, .hostRequest, .surpriseRemoval, .slotReleased, .left,
      .continuation:
      true
    case .shutdown, .reset, .tripleFault, .debugExit, .crashed: false
    }
  }

  /// Whether the guest stops as soon as the event is posted.
  var haltsGuest: Bool {
    switch self {
    case .request(let pending): pending.request.haltsGuest
    case .hostRequest, .surpriseRemoval, .slotReleased, .left, .continuation: false
    case .shutdown, .reset, .tripleFault, .debugExit, .crashed, .quit, .hostReset, .deviceError: true
    }
  }

  /// The next step of some work on the machine's thread. The thread calls `run`, or `cancel` if the machine ends before
  /// this step.
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

/// The reason why the guest cannot continue, from one of its CPUs.
public enum GuestCrash: Hashable, Sendable {
  /// KVM_EXIT_INTERNAL_ERROR
  case internalError(suberror: UInt32, processor: Int, instructionPointer: UInt64?)
  /// KVM_EXIT_FAIL_ENTRY: the host's CPU did not enter the guest.
  case entryFailed(reason: UInt64, processor: Int)
  /// An exit that Nestling does not know.
  case unknownExit(reason: UInt32, processor: Int)
  /// A call of KVM failed.
  case kvm(StartError.KVMError)
}

/// The cause of a reset or of the machine's end (QEMU's ShutdownCause).
public enum MachineCause: Hashable, Sendable {
  /// The guest switched itself off.
  case guestShutdown
  /// The guest reset itself, or a CPU had a triple fault.
  case guestReset
  /// The guest could not continue.
  case guestCrash
  /// A monitor's `quit`.
  case monitorQuit
  /// A monitor's `system_reset`.
  case monitorReset
  /// SIGTERM, SIGINT or SIGHUP.
  case signal
  /// Ctrl-A X on the terminal.
  case terminal
}
