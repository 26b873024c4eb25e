import Hardware
import Synchronization

/// The port through which a function's requests reach memory, translated by the unit.
///
/// Lock order: a walk holds `state` while it reads and updates guest memory, and takes no other lock. Faults are
/// recorded after `state` is released. A hit takes only this lock.
public final class RemappingPort: DMAPort {
  public let memory: any PhysicalMemory
  public let inFlight = RequestsInFlight()
  private let requester: Requester
  private let registers: RegisterBlock
  /// Receives the requester's interrupt requests. If it is nil, they fail.
  private let messages: (any MessageSink)?
  /// Counts interrupt requests, so that the unit can wait for their delivery.
  private let interruptsInFlight: RequestsInFlight
  private let state: Mutex<PortTranslation>

  init(
    requester: Requester, memory: any PhysicalMemory, registers: RegisterBlock, messages: (any MessageSink)?,
    interruptsInFlight: RequestsInFlight, translation: PortTranslation
  ) {
    self.requester = requester
    self.memory = memory
    self.registers = registers
    self.messages = messages
    self.interruptsInFlight = interruptsInFlight
    state = Mutex(translation)
  }

  public func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    guard requester.busMasterEnable else { throw .disabled }
    let source = requester.id
    let outcome = state.withLock { $0.translate(address, count: count, for: access, from: source, memory: memory) }
    switch outcome {
    case .segment(let segment):
      return segment
    case .fault(let reason, let isSuppressed):
      if !isSuppressed {
        let (pasid, isPrivileged) = state.withLock { ($0.requestPASID, $0.isPrivileged) }
        registers.record(
          FaultRecord(
            reason: reason, source: source, information: address, isRead: !access.contains(.write), pasid: pasid,
            isPrivileged: isPrivileged, executes: access.contains(.execute)))
      }
      throw .translation
    }
  }

  /// A write of four aligned bytes to 0xFEEx_xxxx is an interrupt request (VT-d 3.15, 5.1.2).
  public func sendMessage(_ data: UInt32, to address: UInt64) -> Bool {
    guard let messages, WalkRules.isInterruptAddress(address), address % 4 == 0 else { return false }
    let phase = interruptsInFlight.begin()
    defer { interruptsInFlight.end(phase) }
    messages.send(InterruptMessage(address: address, data: data), from: requester.id)
    return true
  }

  public func noteUnclaimed() { requester.receiveMasterAbort() }

  func set(_ mode: TranslationMode, forgetting: Bool) { state.withLock { $0.set(mode, forgetting: forgetting) } }

  /// - Returns: whether requests in flight may use invalidated entries.
  func invalidate(_ invalidation: Invalidation) -> Bool { state.withLock { $0.invalidate(invalidation) } }

  var counters: TranslationCounters { state.withLock { $0.counters } }

  var inspection: PortCache { state.withLock { $0.inspection } }
}
