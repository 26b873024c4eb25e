import Hardware

/// The DMA remapping reporting table (DMAR; VT-d chapter 8).
enum RemappingDescription {
  /// Revision 1 has all structures that are used here.
  private static let revision: UInt8 = 1

  private enum StructureType {
    static let unit: UInt16 = 0
    static let translationServices: UInt16 = 2
  }

  static func table(_ remapping: DMARemapping) throws(ACPIError) -> [UInt8] {
    guard (1...256).contains(remapping.hostAddressWidth) else {
      throw .hostAddressWidthInvalid(remapping.hostAddressWidth)
    }
    var flags: UInt8 = 0
    flags[bit: 0] = remapping.interruptRemapping
    flags[bit: 1] = remapping.x2APICOptOut

    var body: [UInt8] = [UInt8(remapping.hostAddressWidth - 1), flags]
    body += [UInt8](repeating: 0, count: 10)
    // The unit with INCLUDE_PCI_ALL must come after the other units of its segment (8.3).
    for unit in remapping.units.filter({ !$0.includesAll }) + remapping.units.filter(\.includesAll) {
      body += try structure(unit)
    }
    for services in remapping.translationServices { body += try structure(services) }
    return TableHeader.table("DMAR", revision: revision, body: body)
  }

  /// DMA remapping hardware unit definition (8.3).
  private static func structure(_ unit: DMARemapping.Unit) throws(ACPIError) -> [UInt8] {
    // Flags: INCLUDE_PCI_ALL. Size: one page of registers.
    var body: [UInt8] = [unit.includesAll ? 1 : 0, 0]
    body.append(littleEndian: unit.segment, unit.registerBase)
    for scope in unit.scopes { body += try self.scope(scope) }
    return try structure(StructureType.unit, body)
  }

  /// Root port ATS capability reporting (8.5).
  private static func structure(_ services: DMARemapping.TranslationServices) throws(ACPIError) -> [UInt8] {
    var body: [UInt8] = [services.allPorts ? 1 : 0, 0]
    body.append(littleEndian: services.segment)
    if !services.allPorts {
      for scope in services.scopes { body += try self.scope(scope) }
    }
    return try structure(StructureType.translationServices, body)
  }

  private static func structure(_ type: UInt16, _ body: [UInt8]) throws(ACPIError) -> [UInt8] {
    guard let length = UInt16(exactly: body.count + 4) else { throw .structureTooLong(length: body.count + 4) }
    var bytes: [UInt8] = []
    bytes.append(littleEndian: type)
    bytes.append(littleEndian: length)
    return bytes + body
  }

  /// Device scope (8.3.1).
  private static func scope(_ scope: DMARemapping.DeviceScope) throws(ACPIError) -> [UInt8] {
    let size = 6 + 2 * scope.path.count
    guard let length = UInt8(exactly: size) else { throw .structureTooLong(length: size) }
    var bytes: [UInt8] = [scope.type.rawValue, length, 0, 0, scope.enumerationID, scope.startBus]
    for step in scope.path { bytes += [step.device, step.function] }
    return bytes
  }
}

extension DMARemapping {
  /// Makes the content of the DMAR table for a board's units.
  /// - Parameter units: at least one.
  init(_ units: [UnitPlacement]) {
    self.init(
      // The table has one width for all units: that of the widest address that any of them translates.
      hostAddressWidth: units.map { $0.options.unit.addressWidth }.max() ?? 48,
      interruptRemapping: units.contains { $0.options.unit.offersInterruptRemapping },
      // x2APIC mode needs 32-bit destinations for every interrupt, so all units must offer them.
      x2APICOptOut: !units.allSatisfy { $0.options.unit.offersExtendedInterruptMode },
      units: units.map { unit in
        var scopes = unit.functions.map { place in
          DeviceScope(
            type: unit.ports.contains(place) ? .subHierarchy : .endpoint, startBus: 0,
            path: place.path.map { DeviceScope.Step(device: $0.device, function: $0.function) })
        }
        if unit.hasIOAPIC { scopes.append(.ioAPIC(id: 0, sourceID: BoardLayout.ioapicRequester)) }
        return Unit(registerBase: unit.registerBase, includesAll: unit.includesAll, scopes: scopes)
      },
      translationServices: units.contains { $0.options.unit.deviceIOTLB } ? [TranslationServices()] : [])
  }
}
