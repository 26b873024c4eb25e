/// The reason why a vCPU returned from the guest. Each access has 1, 2, 4 or 8 bytes: a string instruction, or an
/// access that crosses a page, is several exits in sequence.
public enum VMExit: Hashable, Sendable {
  /// The caller must answer with `supply` before the next run.
  case portRead(port: UInt16, width: Int)
  case portWrite(port: UInt16, width: Int, value: UInt64)
  /// The caller must answer with `supply` before the next run.
  case memoryRead(address: UInt64, width: Int)
  case memoryWrite(address: UInt64, width: Int, value: UInt64)
  /// A local APIC ended a level-triggered interrupt that an IOAPIC pin is routed to.
  case endOfInterrupt(vector: UInt8)
  /// Triple fault.
  case shutdown
  /// The guest executed HLT and the kernel did not wait for an interrupt itself.
  case halt
  /// A signal or a requested exit: the guest did nothing.
  case interrupted
  /// A system event. `type` is one of KVM_SYSTEM_EVENT_….
  case systemEvent(type: UInt32)
  /// KVM cannot continue: for example, an instruction that it does not emulate (suberror 1).
  case internalError(suberror: UInt32)
  case entryFailed(reason: UInt64)
  case unknown(reason: UInt32)
}
