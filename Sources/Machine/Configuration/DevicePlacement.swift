import Hardware

/// Where PCI devices sit on bus 0: those that say so first, the others in order on what is left.
extension MachineConfiguration {
  /// 00:00.0 and 00:1f.0, as on every q35.
  public static let hostBridgeAddress = RequesterID(bus: 0, device: 0, function: 0)
  public static let isaBridgeAddress = RequesterID(bus: 0, device: 0x1f, function: 0)

  /// - Returns: an address for each of `devices`, in their order; nil for one that is not on PCI.
  public func devicePlacement() throws(ConfigurationError) -> [RequesterID?] {
    var owners: [RequesterID: AddressOwner] = [
      Self.hostBridgeAddress: .hostBridge, Self.isaBridgeAddress: .isaBridge,
    ]
    var placement = [RequesterID?](repeating: nil, count: devices.count)
    for (index, device) in devices.enumerated() {
      guard let device = device as? any PCIDeviceOptions, let address = device.function.address else { continue }
      if let owner = owners[address] { throw .device(index: index, .addressTaken(address, by: owner)) }
      owners[address] = .device(kindName: type(of: device).kindName, id: device.id)
      placement[index] = address
    }
    for (index, device) in devices.enumerated() where placement[index] == nil {
      guard let device = device as? any PCIDeviceOptions else { continue }
      let free = (1..<UInt8(0x1f)).lazy.map { RequesterID(bus: 0, device: $0, function: 0) }
      guard let address = free.first(where: { owners[$0] == nil }) else {
        throw .device(index: index, .noFreeAddress)
      }
      owners[address] = .device(kindName: type(of: device).kindName, id: device.id)
      placement[index] = address
    }
    return placement
  }

  /// The device at an address: its id, and the path that QEMU's tree of objects has for it.
  func deviceName(at address: RequesterID) -> (id: Identifier?, path: String) {
    let index = (try? devicePlacement())?.firstIndex { $0 == address }
    if let id = index.flatMap({ devices[$0].id }) { return (id, "/machine/peripheral/\(id)") }
    let number = devices[..<(index ?? 0)].count { $0.id == nil }
    return (nil, "/machine/peripheral-anon/device[\(number)]")
  }
}
