import Hardware
import Synchronization

/// A named value of a trace event.
public struct TraceArgument: Hashable, Sendable {
  public enum Value: Hashable, Sendable {
    case hexadecimal(UInt64)
    case decimal(UInt64)
    case flag(Bool)
    case source(RequesterID)
    case word(String)
  }

  public let name: String
  public let value: Value

  public static func hex(_ name: String, _ value: some FixedWidthInteger & UnsignedInteger) -> TraceArgument {
    TraceArgument(name: name, value: .hexadecimal(UInt64(value)))
  }

  public static func number(_ name: String, _ value: some FixedWidthInteger) -> TraceArgument {
    TraceArgument(name: name, value: .decimal(UInt64(clamping: value)))
  }

  public static func flag(_ name: String, _ value: Bool) -> TraceArgument {
    TraceArgument(name: name, value: .flag(value))
  }

  public static func source(_ value: RequesterID) -> TraceArgument { TraceArgument(name: "sid", value: .source(value)) }

  public static func word(_ name: String, _ value: String) -> TraceArgument {
    TraceArgument(name: name, value: .word(value))
  }
}

/// Receives the trace events of all units.
///
/// The unit calls the sink on any thread, and may hold locks during the call. The sink must not call the unit. While
/// the sink waits, the guest waits, too.
public protocol TraceSink: AnyObject, Sendable {
  /// - Parameter unit: the unit's name; nil if there is only one unit.
  func record(_ event: TraceEvent, unit: String?, _ arguments: [TraceArgument])
}

/// The enabled trace events of one unit, and their sink. While all are disabled, an event costs one relaxed load.
/// Requests that hit a cache have no event.
public final class Trace: Sendable {
  private let mask: Atomic<UInt64>
  private let sink: any TraceSink
  private let unit: String?

  /// - Parameter unit: the unit's name, if there are several units.
  public init(_ events: some Sequence<TraceEvent>, unit: String? = nil, sink: any TraceSink) {
    mask = Atomic(Self.mask(events))
    self.unit = unit
    self.sink = sink
  }

  /// The bit of each event in `mask`.
  private static let bits = [TraceEvent: UInt64](
    uniqueKeysWithValues: TraceEvent.allCases.enumerated().map { ($0.element, 1 << UInt64($0.offset)) })

  private static func mask(_ events: some Sequence<TraceEvent>) -> UInt64 {
    events.reduce(0) { $0 | (bits[$1] ?? 0) }
  }

  /// Replaces the set of enabled events.
  public func set(_ events: some Sequence<TraceEvent>) { mask.store(Self.mask(events), ordering: .relaxed) }

  @inline(__always)
  func record(_ event: TraceEvent, _ arguments: @autoclosure () -> [TraceArgument]) {
    let enabled = mask.load(ordering: .relaxed)
    if enabled != 0, isEnabled(event, in: enabled) { deliver(event, arguments()) }
  }

  @inline(never)
  private func isEnabled(_ event: TraceEvent, in mask: UInt64) -> Bool { mask & (Self.bits[event] ?? 0) != 0 }

  @inline(never)
  private func deliver(_ event: TraceEvent, _ arguments: [TraceArgument]) {
    sink.record(event, unit: unit, arguments)
  }
}

extension Trace {
  /// Records the changes that a register write made.
  /// - Parameter before: the state in force before the write.
  func record(_ registers: UnitRegisters, before: GlobalCommand, _ effects: UnitRegisters.Effects) {
    let now = registers.globalStatus
    let changed = now.symmetricDifference(before)
    if effects.rootTableSet {
      let mode = registers.translationMode
      record(.rootTableSet, [.hex("addr", mode.rootTable), .flag("scalable", mode.tableMode == .scalable)])
    }
    if changed.contains(.translationEnable) {
      record(.translationEnabled, [.flag("enable", now.contains(.translationEnable))])
    }
    if changed.contains(.queuedInvalidationEnable) {
      record(
        .queueEnabled,
        [
          .flag("enable", now.contains(.queuedInvalidationEnable)), .hex("addr", registers.queue.base),
          .number("size", registers.queue.size),
        ])
    }
    if effects.interruptRemappingChanged {
      let mode = registers.interruptMode
      record(.interruptTableSet, [.hex("addr", mode.table), .number("size", mode.entries)])
      record(.interruptRemappingEnabled, [.flag("enable", mode.enabled)])
    }
  }
}
