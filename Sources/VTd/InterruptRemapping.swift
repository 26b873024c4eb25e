import Hardware
import Synchronization

// Interrupt remapping (VT-d 5.1): an interrupt request in remappable format names an entry of the interrupt remapping
// table. The entry contains the interrupt's destination and the sources that may send it.

/// The result of an interrupt request.
public enum RemappedInterrupt: Hashable, Sendable {
  /// The message to deliver, in compatibility format, encoded for KVM as `InterruptMessage` describes.
  case deliver(InterruptMessage)
  case blocked(FaultReason)
}

/// Receives the interrupt requests that a device makes by a DMA write to 0xFEEx_xxxx.
public protocol MessageSink: AnyObject, Sendable {
  /// - Parameter message: the message as written, before its remapping.
  func send(_ message: InterruptMessage, from requester: RequesterID)
}

/// The state of interrupt remapping: GSTS and the latched IRTA.
struct InterruptRemappingMode: Hashable, Sendable {
  /// IRES.
  var enabled = false
  /// CFIS.
  var allowsCompatibilityFormat = false
  /// EIME: 32-bit destinations.
  var extended = false
  var table: UInt64 = 0
  var entries = 2
}

/// An interrupt remapping table entry in remapped format (VT-d 9.9).
struct InterruptEntry: Hashable, Sendable {
  var low: UInt64
  var high: UInt64

  var isPresent: Bool { low[bit: 0] }  // P
  var faultProcessingDisabled: Bool { low[bit: 1] }  // FPD
  var isPosted: Bool { low[bit: 15] }  // IM

  func hasReservedBits(extended: Bool) -> Bool {
    // CAP.PI is clear, so posted format is reserved. An 8-bit destination is in bits 47:40.
    let destination: UInt64 = extended ? 0 : 0xffff_00ff_0000_0000
    return low & (0xff00_f000 | destination) != 0 || high & 0xffff_ffff_fff0_0000 != 0
  }

  /// Whether the entry's SVT, SQ and SID admit a request from `source`.
  func accepts(_ source: RequesterID) -> Bool {
    let identifier = UInt16(truncatingIfNeeded: high)
    switch high[bits: 18...19] {
    case 0: return true
    case 1:
      let mask = FunctionMask(rawValue: UInt8(truncatingIfNeeded: high[bits: 16...17]))
      return mask.matches(RequesterID(rawValue: identifier), source)
    case 2:
      return identifier >> 8 <= source.bus && source.bus <= identifier & 0xff
    default: return false
    }
  }

  /// The interrupt that the entry describes.
  func message(extended: Bool) -> InterruptMessage {
    let destination = extended ? low >> 32 : low[bits: 40...47]
    var address: UInt64 = 0xfee0_0000
    address[bits: 12...19] = destination
    address[bit: 3] = low[bit: 3]  // RH
    address[bit: 2] = low[bit: 2]  // DM
    address[bits: 40...63] = destination >> 8
    var data: UInt32 = 0
    data[bits: 0...7] = UInt32(truncatingIfNeeded: low[bits: 16...23])  // V
    data[bits: 8...10] = UInt32(truncatingIfNeeded: low[bits: 5...7])  // DLM
    data[bit: 14] = true  // asserted
    data[bit: 15] = low[bit: 4]  // TM
    return InterruptMessage(address: address, data: data)
  }
}

/// An interrupt request as its message encodes it (VT-d 5.1.2).
enum InterruptRequest: Hashable, Sendable {
  case compatibility
  case remappable(index: Int)
  /// A request in remappable format with reserved bits set. The index comes from the defined bits.
  case malformed(index: Int)

  init(_ message: InterruptMessage) {
    let address = message.address
    guard address[bit: 4] else {
      self = .compatibility
      return
    }
    let handle = Int(address[bits: 5...19]) | (address[bit: 2] ? 0x8000 : 0)
    let hasSubhandle = address[bit: 3]
    let index = hasSubhandle ? handle + Int(message.data & 0xffff) : handle
    let isWellFormed = address >> 20 == 0xfee && (!hasSubhandle || message.data >> 16 == 0)
    self = isWellFormed ? .remappable(index: index) : .malformed(index: index)
  }
}

/// Remaps interrupt requests and holds the interrupt entry cache.
///
/// Lock order: code that holds `state` takes no other lock. The remapper reads guest memory while it holds `state`.
final class InterruptRemapper: Sendable {
  struct Blocked: Error {
    let reason: FaultReason
    let index: Int
    let isSuppressed: Bool
  }

  private struct CachedEntry {
    /// The index of the entry plus one; 0 if the cache entry is empty.
    var number = 0
    var entry = InterruptEntry(low: 0, high: 0)
  }

  private struct State {
    var mode = InterruptRemappingMode()
    var cache = [CachedEntry](repeating: CachedEntry(), count: 256)
    var counters = TranslationCounters()
  }

  private let state = Mutex(State())
  private let memory: any PhysicalMemory
  private let trace: Trace?

  init(memory: any PhysicalMemory, trace: Trace?) {
    self.memory = memory
    self.trace = trace
  }

  /// Changes the mode and empties the cache, because a new table has other entries.
  func set(_ mode: InterruptRemappingMode) {
    state.withLock { state in
      state.mode = mode
      for place in state.cache.indices { state.cache[place].number = 0 }
    }
  }

  func invalidate(_ indices: ClosedRange<Int>) {
    state.withLock { state in
      for place in state.cache.indices where indices.contains(state.cache[place].number - 1) {
        state.cache[place].number = 0
      }
    }
  }

  var counters: TranslationCounters { state.withLock { $0.counters } }

  /// The cached entries, ordered by index.
  var cachedEntries: [CachedInterruptEntry] {
    state.withLock { state in
      state.cache.filter { $0.number > 0 }.map {
        CachedInterruptEntry(index: $0.number - 1, low: $0.entry.low, high: $0.entry.high)
      }
    }.sorted { $0.index < $1.index }
  }

  /// - Parameter isMade: true for a real request, which is counted and traced; false to compute the route of later
  ///   requests.
  func remap(
    _ message: InterruptMessage, from source: RequesterID, isMade: Bool
  ) -> Result<InterruptMessage, Blocked> {
    state.withLock { state in
      do throws(Blocked) {
        guard let index = try index(of: message, state.mode) else {
          if isMade { state.counters.count(.interruptsPassed) }
          return .success(message)
        }
        let entry = try entry(index, &state)
        guard entry.accepts(source) else {
          throw Blocked(
            reason: .interruptSourceValidation, index: index, isSuppressed: entry.faultProcessingDisabled)
        }
        let remapped = entry.message(extended: state.mode.extended)
        if isMade { note(message, remappedTo: remapped, by: index, from: source, &state.counters) }
        return .success(remapped)
      } catch {
        guard isMade else { return .failure(error) }
        state.counters.count(.interruptsBlocked)
        trace?.record(
          .interruptBlocked,
          [
            .source(source), .number("index", error.index), .hex("fault", error.reason.rawValue),
            .hex("addr", message.address), .hex("data", message.data),
          ])
        return .failure(error)
      }
    }
  }

  /// Counts and traces a request that uses a route computed earlier.
  func note(_ message: InterruptMessage, remappedTo remapped: InterruptMessage, from source: RequesterID) {
    state.withLock { state in
      if let index = try? index(of: message, state.mode) {
        note(message, remappedTo: remapped, by: index, from: source, &state.counters)
      } else {
        state.counters.count(.interruptsPassed)
      }
    }
  }

  private func note(
    _ message: InterruptMessage, remappedTo remapped: InterruptMessage, by index: Int, from source: RequesterID,
    _ counters: inout TranslationCounters
  ) {
    counters.count(.interruptsRemapped)
    trace?.record(
      .interruptRemapped,
      [
        .source(source), .number("index", index), .hex("addr", message.address), .hex("data", message.data),
        .hex("addr2", remapped.address), .hex("data2", remapped.data),
      ])
  }

  /// - Returns: nil where the message passes unchanged.
  private func index(of message: InterruptMessage, _ mode: InterruptRemappingMode) throws(Blocked) -> Int? {
    guard mode.enabled else { return nil }
    switch InterruptRequest(message) {
    case .compatibility:
      if mode.extended || !mode.allowsCompatibilityFormat {
        throw Blocked(reason: .compatibilityFormatBlocked, index: 0, isSuppressed: false)
      }
      return nil
    case .malformed(let index):
      throw Blocked(reason: .interruptRequestReserved, index: index, isSuppressed: false)
    case .remappable(let index):
      guard index < mode.entries else {
        throw Blocked(reason: .interruptIndexBeyondTable, index: index, isSuppressed: false)
      }
      return index
    }
  }

  /// Returns the entry from the cache or from memory. Only valid entries are cached.
  private func entry(_ index: Int, _ state: inout State) throws(Blocked) -> InterruptEntry {
    let place = index % state.cache.count
    if state.cache[place].number == index + 1 { return state.cache[place].entry }
    state.counters.count(.interruptEntryReads)
    let address = state.mode.table &+ UInt64(index) * 16
    guard let high = memory.loadUInt64(at: address &+ 8), let low = memory.loadUInt64(at: address) else {
      throw Blocked(reason: .interruptEntryAccess, index: index, isSuppressed: false)
    }
    trace?.record(.interruptEntryRead, [.number("index", index), .hex("low", low), .hex("high", high)])
    let entry = InterruptEntry(low: low, high: high)
    let isSuppressed = entry.faultProcessingDisabled
    guard entry.isPresent else {
      throw Blocked(reason: .interruptEntryNotPresent, index: index, isSuppressed: isSuppressed)
    }
    guard !entry.hasReservedBits(extended: state.mode.extended) else {
      throw Blocked(reason: .interruptEntryReserved, index: index, isSuppressed: isSuppressed)
    }
    state.cache[place] = CachedEntry(number: index + 1, entry: entry)
    return entry
  }
}
