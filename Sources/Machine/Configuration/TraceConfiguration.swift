import VTd

/// What `-trace` asks for.
public struct TraceConfiguration: Hashable, Sendable {
  /// Of the units.
  public var events: Set<TraceEvent> = []
  /// Of the machine.
  public var machineEvents: Set<MachineTraceEvent> = []
  /// Where events are written; nil for standard error.
  public var path: String?

  public init() {}

  /// The names of all events, sorted.
  public static let names = (TraceEvent.allCases.map(\.name) + MachineTraceEvent.allCases.map(\.name)).sorted()

  /// Adds the events whose name a pattern has: `*` stands for any characters, also none.
  /// - Returns: false where there are none.
  public mutating func add(matching pattern: String) -> Bool {
    let ofUnits = Self.events(matching: pattern)
    let ofMachine = MachineTraceEvent.allCases.filter { Self.matches(Array($0.name.utf8), Array(pattern.utf8)) }
    events.formUnion(ofUnits)
    machineEvents.formUnion(ofMachine)
    return !ofUnits.isEmpty || !ofMachine.isEmpty
  }

  /// The units' events whose name a pattern has.
  public static func events(matching pattern: String) -> [TraceEvent] {
    TraceEvent.allCases.filter { matches(Array($0.name.utf8), Array(pattern.utf8)) }
  }

  /// Goes back to the last `*` only, so long patterns take no longer than their length times the name's.
  private static func matches(_ name: [UInt8], _ pattern: [UInt8]) -> Bool {
    var position = 0
    var place = 0
    /// After the last `*`, and how much of the name that one has taken.
    var retry: (place: Int, position: Int)?
    while position < name.count {
      if place < pattern.count, pattern[place] == UInt8(ascii: "*") {
        place += 1
        retry = (place, position)
      } else if place < pattern.count, pattern[place] == name[position] {
        place += 1
        position += 1
      } else if let last = retry {
        retry = (last.place, last.position + 1)
        place = last.place
        position = last.position + 1
      } else {
        return false
      }
    }
    return pattern[place...].allSatisfy { $0 == UInt8(ascii: "*") }
  }
}
