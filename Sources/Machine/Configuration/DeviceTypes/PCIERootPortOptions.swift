import Hardware
import PCI

/// `pcie-root-port`: a port of the root complex with one slot below it. The id of the port is the name of the bus below
/// it. Names and defaults are QEMU's.
public struct PCIERootPortOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  /// Chassis number. No other port has the same chassis and slot numbers.
  public var chassis: UInt8 = 0
  /// Physical Slot Number.
  public var slot: UInt16 = 0
  /// Port Number.
  public var port: UInt8 = 0
  /// Whether devices can be plugged and unplugged below the port.
  public var hotplug = true
  public var reservation = RootPort.Reservation()

  public init() {}

  public static let typeName = "pcie-root-port"
  public static let summary = "PCI Express Root Port"
  public static let category = DeviceCategory.bridge

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.addressProperties.map { $0.within(\.function) } + settled + numbers + reserves

  private static let settled: [Property<Self>] = [
    Property(
      "bus", settled: PCIFunctionOptions.rootBus, because: "a root port is on pcie.0", help: "Bus that the port is on")
  ]

  private static let numbers: [Property<Self>] = [
    Property("chassis", \.chassis, help: "Number of the chassis; chassis and slot together identify a port"),
    Property("slot", \.slot, .within(0...0x1fff), help: "Physical number of the slot"),
    Property("port", \.port, help: "Number of the port"),
    Property("hotplug", \.hotplug, help: "Allow plug and unplug below the port"),
  ]

  private static let reserves: [Property<Self>] = [
    Property(
      "io-reserve", \.reservation.io.size, .atMost(0x1_0000), help: "I/O space to reserve below the port, in bytes"),
    Property(
      "mem-reserve", \.reservation.memory.size, .atMost(0x1_0000_0000), help: "32-bit memory to reserve below the port"),
    Property(
      "pref64-reserve", \.reservation.prefetchable.size, .atMost(0x10_0000_0000_0000),
      help: "64-bit prefetchable memory to reserve below the port"),
    Property(
      "bus-reserve", \.reservation.buses, .within(0...254), help: "Bus numbers to reserve, besides the port's own bus"),
  ]
}

extension PCIERootPortOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let model = RootPort(
      ExpressPort(portNumber: port, slotNumber: slot), hotplug: hotplug ? board.slots.way : nil,
      reservation: reservation, environment: board.environment(at: place), address: place.address,
      routes: board.busRoutes, onEject: { [slots = board.slots] in slots.ejected(below: place.address) },
      onRefusal: { [slots = board.slots] in slots.refused(below: place.address) },
      onSlotChange: hotplug ? board.slots.changeListener(of: place.address) : nil)
    if hotplug { board.slots.add(model) }
    let name = id?.text
    // The id of the port is the name of the bus below it.
    if let name { board.buses.set(LiveBus(name: name, type: .pci, isHotpluggable: hotplug)) }
    model.function.environment.onRelease { [buses = board.buses, slots = board.slots] in
      if let name { buses.remove(name) }
      slots.remove(model.function.requester.id)
    }
    return [model.function]
  }
}

extension MachineConfiguration {
  /// The highest bus number that firmware assigns. The ACPI tables end the bus range there: Linux probes every bus in
  /// the range for forgotten host bridges, device by device, which costs 64 exits per bus.
  var lastBus: Int { Self.lastBus(of: devices[...]) }

  static func lastBus(of devices: ArraySlice<any DeviceOptions>) -> Int {
    devices.reduce(0) { last, device in
      (device as? PCIERootPortOptions).map { last + 1 + Int($0.reservation.buses ?? 0) } ?? last
    }
  }
}
