/// Why a vCPU came back from the guest. Accesses have 1, 2, 4 or 8 bytes: a string instruction, or an access that
/// straddles a page, comes as several exits, one after the other.
public enum VMExit: Hashable, Sendable {
  /// To be answered by `supply` before the next run.
  case portRead(port: UInt16, width: Int)
  case portWrite(port: UInt16, width: Int, value: UInt64)
  /// To be answered by `supply` before the next run.
  case memoryRead(address: UInt64, width: Int)
  case memoryWrite(address: UInt64, width: Int, value: UInt64)
  /// A local APIC has ended a level-triggered interrupt that a pin of the IOAPIC is routed to.
  case endOfInterrupt(vector: UInt8)
  /// Triple fault.
  case shutdown
  /// HLT where the kernel does not wait itself.
  case halt
  /// A signal or an immediate exit: nothing happened in the guest.
  case interrupted
  /// KVM_SYSTEM_EVENT_…
  case systemEvent(type: UInt32)
  /// KVM could not go on: an instruction it does not emulate, for example (suberror 1).
  case internalError(suberror: UInt32)
  case entryFailed(reason: UInt64)
  case unknown(reason: UInt32)
}
