import Hardware
import Passthrough
import VTd

// Inspection of the board's remapping units, for monitors and the log. Any thread may call these functions while the
// guest runs.

/// A remapping unit with its name and its scope.
public struct PlacedUnit: Sendable {
  public let placement: UnitPlacement
  let unit: RemappingUnit
  private let bindings: @Sendable (RemappingUnit) -> HostBindings?

  /// - Parameter bindings: returns the host bindings of the passed-through functions behind the unit; nil if there has
  ///   never been one.
  init(
    _ placement: UnitPlacement, unit: RemappingUnit,
    bindings: @escaping @Sendable (RemappingUnit) -> HostBindings? = { _ in nil }
  ) {
    self.placement = placement
    self.unit = unit
    self.bindings = bindings
  }

  public var name: String { placement.name }
  public var counters: TranslationCounters { unit.counters }
  /// The counters of the host's side; nil if there never was a passed-through function behind the unit.
  public var hostCounters: HostBindings.Counters? { bindings(unit)?.counters }

  /// The page table to which the host has attached each passed-through function behind the unit.
  var attachments: [HostAttachment] { bindings(unit)?.boundFunctions.map(HostAttachment.init) ?? [] }
}

/// A function on the board with its device's id and type.
public struct NamedFunction: Hashable, Sendable {
  public let id: String?
  public let typeName: String
  public let address: RequesterID
}

/// The state of a unit at one moment.
public struct RemappingUnitState: Sendable {
  public let unit: PlacedUnit
  public let snapshot: UnitSnapshot
  /// The functions that the unit translates for.
  public let functions: [NamedFunction]
  /// The host attachments of the passed-through functions.
  public let attachments: [HostAttachment]
}

/// The translation that one request would get from its unit.
public struct TranslationReport: Sendable {
  public let function: NamedFunction?
  public let source: RequesterID
  public let unitName: String
  public let explanation: TranslationExplanation
}

/// Inspects the remapping units of one machine.
public struct RemappingInspection: Sendable {
  public enum Problem: Error, Hashable, Sendable {
    case noUnit
    /// The name is neither a device's id nor an address.
    case unknownDevice(String, known: [String])
    /// No unit translates for the function.
    case notRemapped(RequesterID)
  }

  /// The units, in the order of the command line.
  public let units: [PlacedUnit]
  private let functions: @Sendable () -> [(function: NamedFunction, unit: Int?)]
  private let unitIndex: @Sendable (RequesterID) -> Int?

  /// - Parameters:
  ///   - functions: returns the functions on the board now, each with the index of its unit in `units`, if it has one.
  ///   - unitIndex: returns the index of the unit for an address, even if no function is at that address.
  init(
    units: [PlacedUnit], functions: @escaping @Sendable () -> [(function: NamedFunction, unit: Int?)],
    unitIndex: @escaping @Sendable (RequesterID) -> Int?
  ) {
    self.units = units
    self.functions = functions
    self.unitIndex = unitIndex
  }

  /// Returns the state of every unit now.
  public func states() -> [RemappingUnitState] {
    let functions = functions()
    return units.enumerated().map { index, unit in
      let unitFunctions = functions.filter { $0.unit == index }.map(\.function)
      return RemappingUnitState(
        unit: unit, snapshot: unit.unit.snapshot(of: unitFunctions.map(\.address)), functions: unitFunctions,
        attachments: unit.attachments)
    }
  }

  /// Explains, entry by entry, how a request of a device to an address would be translated now.
  /// - Parameters:
  ///   - device: an id, or an address such as `00:02.0` or `02.0`, even one without a function.
  ///   - pasid: the PASID of the request; nil for a request without PASID.
  public func translation(
    of device: String, pasid: UInt32?, address: UInt64, access: DMAAccess
  ) throws(Problem) -> TranslationReport {
    guard !units.isEmpty else { throw .noUnit }
    let functions = functions()
    let named = functions.first { $0.function.id == device }
    guard let source = named?.function.address ?? RequesterID(name: device) else {
      throw .unknownDevice(device, known: functions.map { $0.function.id ?? $0.function.address.description })
    }
    let found = named ?? functions.first { $0.function.address == source }
    guard let index = found.map(\.unit) ?? unitIndex(source) else { throw .notRemapped(source) }
    return TranslationReport(
      function: found?.function, source: source, unitName: units[index].name,
      explanation: units[index].unit.explanation(of: address, for: access, from: source, pasid: pasid))
  }
}

extension RequesterID {
  /// Parses an address in one of the usual hexadecimal forms: `02` or `02.0` for bus 0, `00:02.0`, `0000:00:02.0`.
  public init?(name: String) {
    var parts = name.split(separator: ":", omittingEmptySubsequences: false)
    if parts.count == 3 {
      guard NumberText.unsigned(parts[0].utf8, radix: 16) == 0 else { return nil }
      parts.removeFirst()
    }
    guard parts.count <= 2, let last = parts.last, let function = try? RequesterID(text: String(last)) else {
      return nil
    }
    var bus: UInt8 = 0
    if parts.count == 2 {
      // An address with a bus must name the function, too: `d0:5` could also be an id and a PASID.
      guard last.contains("."), let number = NumberText.unsigned(parts[0].utf8, radix: 16),
        let value = UInt8(exactly: number)
      else {
        return nil
      }
      bus = value
    }
    self.init(bus: bus, device: function.device, function: function.function)
  }
}
