/// Why the guest stops, all of it or to start anew. Whoever brings it about posts it; the machine's own thread acts.
public enum MachineEvent: Hashable, Sendable {
  /// The guest switched itself off, or the host asked it to end.
  case shutdown
  /// The guest reset itself.
  case reset
  /// A CPU could not even deliver a double fault, which resets the guest.
  case tripleFault(processor: Int, instructionPointer: UInt64?)
  /// The guest ended Nestling with a status (isa-debug-exit).
  case debugExit(status: Int32)
  /// The person at the terminal asked for the end, or a signal did.
  case quit
  /// The guest cannot go on: what KVM reported.
  case crashed(String)
}
