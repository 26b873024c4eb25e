import Hardware

extension DMARemapping {
  /// Makes the content of the DMAR table for a board's units.
  /// - Parameter units: at least one.
  init(_ units: [UnitPlacement]) {
    self.init(
      // The table has one width for all units: that of the widest address that any of them translates.
      hostAddressWidth: units.map { Int($0.options.addressWidth) }.max() ?? 48,
      interruptRemapping: units.contains { $0.options.offersInterruptRemapping },
      // x2APIC mode needs 32-bit destinations for every interrupt, so all units must offer them.
      x2APICOptOut: !units.allSatisfy { $0.options.offersExtendedInterrupts },
      units: units.map { unit in
        var scopes = unit.functions.map { place in
          DeviceScope(
            kind: unit.ports.contains(place) ? .subHierarchy : .endpoint, startBus: 0,
            path: place.path.map { DeviceScope.Step(device: $0.device, function: $0.function) })
        }
        if unit.hasIOAPIC { scopes.append(.ioAPIC(id: 0, sourceID: BoardLayout.ioapicRequester)) }
        return Unit(registerBase: unit.registerBase, includesAll: unit.includesAll, scopes: scopes)
      },
      translationServices: units.contains { $0.options.deviceIOTLB } ? [TranslationServices()] : [])
  }
}
