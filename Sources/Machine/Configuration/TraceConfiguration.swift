import VTd

/// The events of `-trace`, and their destination.
public struct TraceConfiguration: Hashable, Sendable {
  /// Events of the remapping units.
  public var events: Set<TraceEvent> = []
  /// Events of the machine.
  public var machineEvents: Set<MachineTraceEvent> = []
  /// The file for the events; nil for standard error.
  public var path: String?

  public init() {}

  /// The names of all events, sorted.
  public static let names = (TraceEvent.allCases.map(\.name) + MachineTraceEvent.allCases.map(\.name)).sorted()

  /// Adds the events whose names match a pattern, in which `*` matches any number of characters.
  /// - Returns: false if no event matches.
  public mutating func add(matching pattern: String) -> Bool {
    let ofUnits = TraceEvent.matching(pattern)
    let ofMachine = MachineTraceEvent.matching(pattern)
    events.formUnion(ofUnits)
    machineEvents.formUnion(ofMachine)
    return !ofUnits.isEmpty || !ofMachine.isEmpty
  }
}

extension NamedTraceEvent {
  /// Returns the events whose names match a pattern.
  public static func matching(_ pattern: String) -> [Self] {
    allCases.filter { matches(Array($0.name.utf8), Array(pattern.utf8)) }
  }

  /// Matches a name. It backtracks only to the last `*`, so the time is at most the product of the two lengths.
  private static func matches(_ name: [UInt8], _ pattern: [UInt8]) -> Bool {
    var position = 0
    var place = 0
    /// The pattern's place after the last `*`, and the name's position up to which that `*` matches.
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
