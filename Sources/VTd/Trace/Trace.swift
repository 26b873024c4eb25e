import Hardware
import Synchronization

/// A value that goes with an event.
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

/// Takes the events of all units.
///
/// Called on any thread, with locks of the unit held: it calls nothing of the unit, and what it waits for, the guest
/// waits for.
public protocol TraceSink: AnyObject, Sendable {
  /// - Parameter unit: nil where there is only one.
  func record(_ event: TraceEvent, unit: String?, _ arguments: [TraceArgument])
}

/// Which events of one unit are told, and to whom. An event that is off costs a relaxed load; requests that hit a
/// cache have no event.
public final class Trace: Sendable {
  private let mask: Atomic<UInt64>
  private let sink: any TraceSink
  private let unit: String?

  /// - Parameter unit: its name, to tell several apart.
  public init(_ events: some Sequence<TraceEvent>, unit: String? = nil, sink: any TraceSink) {
    mask = Atomic(Self.mask(events))
    self.unit = unit
    self.sink = sink
  }

  private static func mask(_ events: some Sequence<TraceEvent>) -> UInt64 {
    events.reduce(0) { $0 | 1 << UInt64($1.rawValue) }
  }

  /// Which events are told from now on.
  public func set(_ events: some Sequence<TraceEvent>) { mask.store(Self.mask(events), ordering: .relaxed) }

  @inline(__always)
  func record(_ event: TraceEvent, _ arguments: @autoclosure () -> [TraceArgument]) {
    if mask.load(ordering: .relaxed) & 1 << UInt64(event.rawValue) != 0 { tell(event, arguments()) }
  }

  @inline(never)
  private func tell(_ event: TraceEvent, _ arguments: [TraceArgument]) {
    sink.record(event, unit: unit, arguments)
  }
}
