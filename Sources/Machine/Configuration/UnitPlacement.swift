import Hardware

/// One remapping unit on the board: its registers and its scope. Both are fixed at the start; hotplug does not change
/// them.
public struct UnitPlacement: Hashable, Sendable {
  /// The unit's id. A unit without one is `iommuN`, where N is its index.
  public var name: String
  public var options: IntelIOMMUOptions
  /// Guest physical address of the unit's page of registers.
  public var registerBase: UInt64
  /// INCLUDE_PCI_ALL: the unit covers every device that no other unit's scope includes.
  public var includesAll: Bool
  /// Whether the unit remaps the IOAPIC's interrupts.
  public var hasIOAPIC: Bool
  /// The functions that the unit's scope names, sorted by their paths from bus 0.
  public var functions: [PCIPlace]
  /// The root ports among `functions`. A port stands for everything below it, too.
  public var ports: Set<PCIPlace> = []

  /// Returns whether the unit's scope includes a function, by name or by the port above it.
  public func names(_ place: PCIPlace) -> Bool {
    functions.contains(place) || place.port.map { ports.contains(PCIPlace($0)) } ?? false
  }
}

extension MachineConfiguration {
  /// The IOAPIC's name in `devices=`.
  public static let ioapicName = "ioapic"

  /// Returns the remapping units, in the order given.
  /// - Parameter placement: the places of `devices`, in their order.
  public func unitPlacement(_ placement: [PCIPlace?]) throws(ConfigurationError) -> [UnitPlacement] {
    var units: [UnitPlacement] = []
    /// The id of the unit whose scope names a place. The key nil stands for the IOAPIC.
    var owners: [PCIPlace?: Identifier?] = [:]
    let allPorts = Set(zip(devices, placement).compactMap { $0 is PCIERootPortOptions ? $1 : nil })
    var all: Identifier??
    for (index, device) in devices.enumerated() {
      guard let options = device as? IntelIOMMUOptions else { continue }
      guard units.count < BoardLayout.remappingUnitLimit else {
        throw .device(index: index, .tooManyUnits(highest: BoardLayout.remappingUnitLimit))
      }
      var unit = UnitPlacement(
        name: options.id?.text ?? "iommu\(units.count)", options: options,
        registerBase: BoardLayout.remappingUnit + 0x1000 * UInt64(units.count), includesAll: options.devices == nil,
        hasIOAPIC: false, functions: [])
      if options.devices == nil {
        if let other = all { throw .device(index: index, .otherUnitIncludesAll(other)) }
        all = .some(options.id)
      }
      for name in options.devices?.names ?? [] {
        let place = try self.place(ofDeviceNamed: name, placement, for: index)
        if let owner = owners[place] { throw .device(index: index, .deviceHasUnit(name, owner)) }
        owners[place] = .some(options.id)
        guard let place else {
          unit.hasIOAPIC = true
          continue
        }
        unit.functions.append(place)
        if allPorts.contains(place) { unit.ports.insert(place) }
        // A unit that lists a port covers everything below it, so no other unit can list a function there.
        if let other = units.first(where: { other in
          place.port != nil && other.names(place) || other.functions.contains { $0.port == place.address }
        }), place.port != nil || unit.ports.contains(place) {
          throw .device(index: index, .deviceHasUnit(name, other.options.id))
        }
      }
      unit.functions.sort()
      units.append(unit)
    }
    if owners[nil] == nil, let index = units.firstIndex(where: \.includesAll) { units[index].hasIOAPIC = true }
    for (device, place) in zip(devices, placement) where device is VFIOPCIOptions {
      let own = units.firstIndex { unit in place.map(unit.names) ?? false }
      guard let index = own ?? units.firstIndex(where: \.includesAll) else { continue }
      units[index].options.unit.cachingMode = units[index].options.unit.cachingMode ?? true
    }
    return units
  }

  /// Finds the place that a name in `devices=` stands for.
  /// - Returns: nil for the IOAPIC.
  private func place(
    ofDeviceNamed name: String, _ placement: [PCIPlace?], for unit: Int
  ) throws(ConfigurationError) -> PCIPlace? {
    if let index = devices.firstIndex(where: { $0.id?.text == name }) {
      guard index < placement.count, let place = placement[index] else {
        throw .device(index: unit, .notRemappable(name))
      }
      return place
    }
    if name == Self.ioapicName { return nil }
    // The address may have no function yet. A function below a port has no fixed address: the guest numbers its bus.
    if let address = RequesterID(name: name), address.bus == 0, address.function == 0 { return PCIPlace(address) }
    throw .device(
      index: unit,
      .unknownDevice(name, known: devices.indices.compactMap { placement[$0] == nil ? nil : devices[$0].id?.text }))
  }
}
