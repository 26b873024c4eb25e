import Hardware
import PCI

/// A slot below a root port that supports hotplug. Its index among the machine's slots is its number in the ACPI
/// controller.
struct HotplugSlot: Hashable, Sendable {
  /// The port's address on bus 0.
  var port: RequesterID
  /// Physical Slot Number, which ACPI shows as _SUN.
  var number: UInt16
}

extension MachineConfiguration {
  /// Returns all slots, in the order of the ports' addresses. Ports cannot be hotplugged, so no slot is added later.
  /// - Parameter placement: the places of `devices`, from `devicePlacement`.
  func hotplugSlots(_ placement: [PCIPlace?]) -> [HotplugSlot] {
    let slots = zip(devices, placement).compactMap { device, place -> HotplugSlot? in
      guard let port = device as? PCIERootPortOptions, port.hotplug, let place else { return nil }
      return HotplugSlot(port: place.address, number: port.slot)
    }
    return slots.sorted { $0.port.rawValue < $1.port.rawValue }
  }
}

extension HotplugWay: PropertyValue {
  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    guard let way = Self.allCases.first(where: { $0.text == text }) else { throw .notOneOf(Self.allCases.map(\.text)) }
    self = way
  }

  public var text: String {
    switch self {
    case .acpi: "acpi"
    case .native: "native"
    }
  }
}
