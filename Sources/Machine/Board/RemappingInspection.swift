import Hardware
import VTd

// The board's remapping units for those who look at them: a monitor, and the log. All of it may be called from any
// thread, while the guest runs.

/// A unit under the name by which people know it.
public struct RemappingUnit: Sendable {
  /// Its id, or `iommu0` and on for one without.
  public let name: String
  /// Guest physical address of its registers.
  public let registerBase: UInt64
  /// INCLUDE_PCI_ALL: it has every function that no other unit's scope names.
  public let includesAll: Bool
  /// It remaps the IOAPIC's interrupts.
  public let hasIOAPIC: Bool
  /// The functions that its scope names.
  public let scope: [PCIPlace]
  let unit: TranslationUnit
  private let bindings: @Sendable (TranslationUnit) -> HostBindings?

  /// - Parameter bindings: those of the passed-through functions behind the unit; nil where there never was one.
  init(
    _ placement: UnitPlacement, unit: TranslationUnit,
    bindings: @escaping @Sendable (TranslationUnit) -> HostBindings? = { _ in nil }
  ) {
    name = placement.name
    registerBase = placement.registerBase
    includesAll = placement.includesAll
    hasIOAPIC = placement.hasIOAPIC
    scope = placement.functions
    self.unit = unit
    self.bindings = bindings
  }

  /// Every counter with the name under which people see it; with passed-through functions, those of the host's side.
  public var counters: [(name: String, value: UInt64)] { counters(unit.counters) }

  func counters(_ own: TranslationCounters) -> [(name: String, value: UInt64)] {
    own.named + (bindings(unit)?.counters.named ?? [])
  }

  /// What the host has for each passed-through function behind the unit.
  var attachments: [HostAttachment] { bindings(unit)?.boundFunctions.map(HostAttachment.init) ?? [] }
}

/// A function on the board as people name it.
public struct NamedFunction: Hashable, Sendable {
  public let id: String?
  public let typeName: String
  public let address: RequesterID
}

/// A unit at one moment.
public struct RemappingUnitState: Sendable {
  public let unit: RemappingUnit
  public let snapshot: UnitSnapshot
  /// The functions that it translates for.
  public let functions: [NamedFunction]
  /// As `RemappingUnit.counters`, of the snapshot.
  public var counters: [(name: String, value: UInt64)] { unit.counters(snapshot.counters) }
  /// Of the passed-through ones among the functions.
  public let attachments: [HostAttachment]
}

/// What one request would meet.
public struct TranslationReport: Sendable {
  public let function: NamedFunction?
  public let source: RequesterID
  public let unitName: String
  public let explanation: TranslationExplanation
}

/// Looks at the units of one machine.
public struct RemappingInspection: Sendable {
  public enum Problem: Error, Hashable, Sendable {
    case noUnit
    /// Neither a device's id nor an address.
    case unknownDevice(String, known: [String])
    /// No unit stands before it.
    case notRemapped(RequesterID)
  }

  /// In the order in which they were asked for.
  public let units: [RemappingUnit]
  private let functions: @Sendable () -> [(function: NamedFunction, unit: Int?)]
  private let unitIndex: @Sendable (RequesterID) -> Int?

  /// - Parameters:
  ///   - functions: those on the board now, and which of `units` each is behind, if any.
  ///   - unitIndex: the same of an address that need not have a function.
  init(
    units: [RemappingUnit], functions: @escaping @Sendable () -> [(function: NamedFunction, unit: Int?)],
    unitIndex: @escaping @Sendable (RequesterID) -> Int?
  ) {
    self.units = units
    self.functions = functions
    self.unitIndex = unitIndex
  }

  /// Every unit as it is now.
  public func states() -> [RemappingUnitState] {
    let functions = functions()
    return units.enumerated().map { index, unit in
      let own = functions.filter { $0.unit == index }.map(\.function)
      return RemappingUnitState(
        unit: unit, snapshot: unit.unit.snapshot(of: own.map(\.address)), functions: own,
        attachments: unit.attachments)
    }
  }

  /// What a request of a device to an address would meet now, entry by entry.
  /// - Parameters:
  ///   - device: an id, or an address as `00:02.0` or `02.0`; there need be no function at it.
  ///   - pasid: that of the request; nil for one without.
  public func translation(
    of device: String, pasid: UInt32?, address: UInt64, access: DMAAccess
  ) throws(Problem) -> TranslationReport {
    guard !units.isEmpty else { throw .noUnit }
    let functions = functions()
    let named = functions.first { $0.function.id == device }
    guard let source = named?.function.address ?? RequesterID(name: device) else {
      throw .unknownDevice(device, known: functions.map { $0.function.id ?? $0.function.address.description })
    }
    let there = named ?? functions.first { $0.function.address == source }
    guard let index = there.map(\.unit) ?? unitIndex(source) else { throw .notRemapped(source) }
    return TranslationReport(
      function: there?.function, source: source, unitName: units[index].name,
      explanation: units[index].unit.explanation(of: address, for: access, from: source, pasid: pasid))
  }
}

extension RequesterID {
  /// An address as people write it, hexadecimal: `02` or `02.0` on bus 0, `00:02.0`, `0000:00:02.0`.
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
      // With a bus, the function stands there too: `d0:5` may as well be an id and a PASID.
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
