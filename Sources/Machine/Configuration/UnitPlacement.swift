import Hardware

/// One remapping unit on the board: its registers, and what is behind it. Fixed at start, whatever comes to or goes
/// from the addresses later.
public struct UnitPlacement: Hashable, Sendable {
  /// Its id, or `iommu0` and on for one without.
  public var name: String
  public var options: IntelIOMMUOptions
  /// Guest physical address of its page of registers.
  public var registerBase: UInt64
  /// INCLUDE_PCI_ALL: it has what no other unit's scope names.
  public var includesAll: Bool
  /// It remaps the IOAPIC's interrupts.
  public var hasIOAPIC: Bool
  /// The functions that its scope names, in order of address.
  public var functions: [RequesterID]
}

extension MachineConfiguration {
  /// What `devices=` calls the IOAPIC.
  public static let ioapicName = "ioapic"

  /// The remapping units, in the order given.
  /// - Parameter placement: the addresses of `devices`, in their order.
  public func unitPlacement(_ placement: [RequesterID?]) throws(ConfigurationError) -> [UnitPlacement] {
    var units: [UnitPlacement] = []
    /// Whose scope names what; nil for the IOAPIC.
    var owners: [RequesterID?: Identifier?] = [:]
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
        let address = try self.address(ofDeviceNamed: name, placement, for: index)
        if let owner = owners[address] { throw .device(index: index, .deviceHasUnit(name, owner)) }
        owners[address] = .some(options.id)
        if let address { unit.functions.append(address) } else { unit.hasIOAPIC = true }
      }
      unit.functions.sort()
      units.append(unit)
    }
    if owners[nil] == nil, let index = units.firstIndex(where: \.includesAll) { units[index].hasIOAPIC = true }
    for (device, address) in zip(devices, placement) where device is VFIOPCIOptions {
      let own = units.firstIndex { unit in address.map { unit.functions.contains($0) } ?? false }
      guard let index = own ?? units.firstIndex(where: \.includesAll) else { continue }
      units[index].options.cachingMode = units[index].options.cachingMode ?? true
    }
    return units
  }

  /// - Returns: nil for the IOAPIC.
  private func address(
    ofDeviceNamed name: String, _ placement: [RequesterID?], for unit: Int
  ) throws(ConfigurationError) -> RequesterID? {
    if let index = devices.firstIndex(where: { $0.id?.text == name }) {
      guard index < placement.count, let address = placement[index] else {
        throw .device(index: unit, .notRemappable(name))
      }
      return address
    }
    if name == Self.ioapicName { return nil }
    // Nothing need be there yet; bus 0 is all there is.
    if let address = RequesterID(name: name), address.bus == 0, address.function == 0 { return address }
    throw .device(
      index: unit,
      .unknownDevice(name, known: devices.indices.compactMap { placement[$0] == nil ? nil : devices[$0].id?.text }))
  }
}
