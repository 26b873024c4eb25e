import Hardware
import Synchronization

/// The port through which a function's requests reach memory, translated by the unit.
///
/// Lock order: a walk holds `state` while it reads and updates guest memory, and takes no other lock. Faults are
/// recorded after `state` is released. A hit takes only this lock.
public final class RemappingPort: DMAPort {
  public let memory: any PhysicalMemory
  public let inFlight = RequestsInFlight()
  /// RAM, for the walks.
  private let ram: any PhysicalMemory
  private let requester: Requester
  private let registers: RegisterBlock
  private let state: Mutex<PortTranslation>

  /// - Parameter memory: the destination of requests: `ram` and everything else that they can reach.
  init(
    requester: Requester, memory: any PhysicalMemory, ram: any PhysicalMemory, registers: RegisterBlock,
    translation: PortTranslation
  ) {
    self.requester = requester
    self.memory = memory
    self.ram = ram
    self.registers = registers
    state = Mutex(translation)
  }

  public func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    guard requester.busMasterEnable else { throw .disabled }
    let source = requester.id
    let outcome = state.withLock { $0.translate(address, count: count, for: access, from: source, memory: ram) }
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

  public func noteUnclaimed() { requester.receiveMasterAbort() }

  func set(_ mode: TranslationMode, forgetting: Bool) { state.withLock { $0.set(mode, forgetting: forgetting) } }

  /// - Returns: whether requests in flight may use invalidated entries.
  func invalidate(_ invalidation: Invalidation) -> Bool { state.withLock { $0.invalidate(invalidation) } }

  var counters: TranslationCounters { state.withLock { $0.counters } }

  var inspection: PortCache { state.withLock { $0.inspection } }
}

/// One function's view of RAM and the interrupt address range: a write of four aligned bytes to 0xFEEx_xxxx is an
/// interrupt request (VT-d 3.15, 5.1.2).
final class RequesterMemory: PhysicalMemory {
  private let ram: any PhysicalMemory
  private let requester: Requester
  private let messages: any MessageSink
  /// Counts interrupt requests, so that the unit can wait for their delivery.
  private let inFlight: RequestsInFlight

  init(ram: any PhysicalMemory, requester: Requester, messages: any MessageSink, inFlight: RequestsInFlight) {
    self.ram = ram
    self.requester = requester
    self.messages = messages
    self.inFlight = inFlight
  }

  func loadUInt16(at address: UInt64) -> UInt16? { ram.loadUInt16(at: address) }
  func loadUInt32(at address: UInt64) -> UInt32? { ram.loadUInt32(at: address) }
  func loadUInt64(at address: UInt64) -> UInt64? { ram.loadUInt64(at: address) }
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { ram.storeUInt16(value, at: address) }
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { ram.storeUInt64(value, at: address) }

  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool {
    ram.storeUInt32(value, at: address) || send(value, to: address)
  }

  func write(_ bytes: RawSpan, to address: UInt64) -> Bool {
    if ram.write(bytes, to: address) { return true }
    guard bytes.byteCount == 4 else { return false }
    let bytes = Span<UInt8>(_bytes: bytes)
    return send((0..<4).reduce(0) { $0 | UInt32(bytes[$1]) << UInt32(8 * $1) }, to: address)
  }

  /// - Returns: whether the write is an interrupt request.
  private func send(_ data: UInt32, to address: UInt64) -> Bool {
    guard WalkRules.isInterruptAddress(address), address % 4 == 0 else { return false }
    let phase = inFlight.begin()
    defer { inFlight.end(phase) }
    messages.send(InterruptMessage(address: address, data: data), from: requester.id)
    return true
  }

  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? {
    ram.compareExchangeUInt64(at: address, expected: expected, desired: desired)
  }

  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool { ram.read(from: address, into: &bytes) }
  func contains(_ address: UInt64, count: UInt64) -> Bool { ram.contains(address, count: count) }
}
