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

/// A list of at most 64 trace events. The raw value is the event's name.
public protocol NamedTraceEvent: CaseIterable, Hashable, Sendable, RawRepresentable where RawValue == String {}

extension NamedTraceEvent {
  public var name: String { rawValue }
}

/// Receives the trace events of all units and of the machine.
///
/// The source calls the sink on any thread, and may hold locks during the call. The sink must not call the source.
/// While the sink waits, the guest waits, too.
public protocol TraceSink: AnyObject, Sendable {
  /// - Parameters:
  ///   - event: the event's name.
  ///   - unit: the unit's name; nil if there is only one unit, and for events of the machine.
  func record(_ event: String, unit: String?, _ arguments: [TraceArgument])
}

/// The trace of one unit. Requests that hit a cache have no event.
public typealias Trace = EventTrace<TraceEvent>

/// The enabled trace events of one source, and their sink. While all are disabled, an event costs one relaxed load.
public final class EventTrace<Event: NamedTraceEvent>: Sendable {
  private let mask: Atomic<UInt64>
  /// The bit of each event in `mask`.
  private let bits: [Event: UInt64]
  private let sink: (any TraceSink)?
  private let unit: String?

  /// - Parameters:
  ///   - unit: the unit's name, if there are several units.
  ///   - sink: nil if no event is enabled.
  public init(_ events: some Sequence<Event>, unit: String? = nil, sink: (any TraceSink)?) {
    let bits = [Event: UInt64](
      uniqueKeysWithValues: Event.allCases.enumerated().map { ($0.element, 1 << UInt64($0.offset)) })
    mask = Atomic(Self.mask(of: events, bits))
    self.bits = bits
    self.unit = unit
    self.sink = sink
  }

  private static func mask(of events: some Sequence<Event>, _ bits: [Event: UInt64]) -> UInt64 {
    events.reduce(0) { $0 | (bits[$1] ?? 0) }
  }

  /// Replaces the set of enabled events.
  public func set(_ events: some Sequence<Event>) {
    mask.store(Self.mask(of: events, bits), ordering: .relaxed)
  }

  public func isOn(_ event: Event) -> Bool { isEnabled(event, in: mask.load(ordering: .relaxed)) }

  @inline(__always)
  public func record(_ event: Event, _ arguments: @autoclosure () -> [TraceArgument]) {
    let enabled = mask.load(ordering: .relaxed)
    if enabled != 0, isEnabled(event, in: enabled) { deliver(event, arguments()) }
  }

  @inline(never)
  private func isEnabled(_ event: Event, in mask: UInt64) -> Bool { mask & (bits[event] ?? 0) != 0 }

  @inline(never)
  private func deliver(_ event: Event, _ arguments: [TraceArgument]) {
    sink?.record(event.name, unit: unit, arguments)
  }
}

extension EventTrace<TraceEvent> {
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
