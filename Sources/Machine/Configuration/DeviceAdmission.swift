import Hardware

/// Checks whether one more device fits into the machine: its id, its block nodes, objects and netdev, its place on
/// PCI. A plain value that records the resources of the admitted devices; it opens nothing.
public struct DeviceAdmission: Sendable {
  private(set) var blockNodes: [BlockNode]
  private(set) var objects: [any ObjectOptions]
  private var identifiers: Set<Identifier> = []
  /// The users of each node. Only a read-only node can have several.
  private var nodeUsers: [String: [BlockNodeUser]] = [:]
  /// The number of devices that use each object.
  private var objectUsers: [Identifier: Int] = [:]
  private(set) var netdevs: [Identifier]
  /// The place of the device that uses each netdev. A netdev has at most one user.
  private var netdevUsers: [Identifier: PCIPlace] = [:]
  private var owners: [PCIPlace: AddressOwner] = [
    PCIPlace(MachineConfiguration.hostBridgeAddress): .hostBridge,
    PCIPlace(MachineConfiguration.isaBridgeAddress): .isaBridge,
  ]
  /// The places of functions with `multifunction=on`.
  private var multifunction: Set<PCIPlace> = []
  /// Root ports by their ids, which name the buses below them.
  private var ports: [Identifier: RequesterID] = [:]
  private var slots: Set<ChassisSlot> = []
  /// Device numbers on bus 0 that the command line gives in `addr=`. Devices without `addr=` do not get these.
  private let reserved: Set<UInt8>

  /// Creates the admission of a machine without backends.
  public init() {
    blockNodes = []
    objects = []
    netdevs = []
    reserved = []
  }

  /// Creates the admission of a machine with a configuration's backends. No device is admitted yet.
  /// - Throws: a mistake in the block nodes.
  public init(_ configuration: MachineConfiguration) throws(ConfigurationError) {
    blockNodes = configuration.blockNodes
    objects = configuration.objects
    netdevs = configuration.netdevs.compactMap(\.id)
    reserved = Set(
      configuration.devices.compactMap { device in
        guard let function = (device as? any PCIDeviceOptions)?.function else { return nil }
        return function.bus == PCIFunctionOptions.rootBus ? function.address?.device : nil
      })
    try configuration.checkBlockNodes()
    for node in blockNodes {
      if let name = node.underlying { nodeUsers[name, default: []].append(.node(node.id)) }
    }
  }

  private struct ChassisSlot: Hashable {
    let chassis: UInt8
    let slot: UInt16

    init(_ port: PCIERootPortOptions) {
      chassis = port.chassis
      slot = port.slot
    }
  }

  /// Admits a device, or throws and changes nothing.
  /// - Parameter isHotplugged: whether the machine already runs.
  /// - Returns: the device's place; nil for a device that is not on PCI.
  public mutating func admit(
    _ device: any DeviceOptions, isHotplugged: Bool = false
  ) throws(DeviceProblem) -> PCIPlace? {
    if let id = device.id, identifiers.contains(id) { throw .duplicateID(id) }
    for use in device.nodes { try check(use) }
    for use in device.objects { try check(use) }
    if let use = device.netdev { try check(use) }
    let owner = AddressOwner.device(typeName: type(of: device).typeName, id: device.id)
    let port = device as? PCIERootPortOptions
    if let port, slots.contains(ChassisSlot(port)) {
      throw .slotTaken(chassis: port.chassis, slot: port.slot)
    }
    var place: PCIPlace?
    if let function = (device as? any PCIDeviceOptions)?.function {
      let wanted = try self.place(function)
      try checkFunctions(at: wanted, isMultifunction: function.isMultifunction, isHotplugged: isHotplugged)
      if function.isMultifunction { multifunction.insert(wanted) }
      place = wanted
    }

    if let place { owners[place] = owner }
    if let port, let place {
      slots.insert(ChassisSlot(port))
      if let id = port.id { ports[id] = place.address }
    }
    if let id = device.id { identifiers.insert(id) }
    let user = BlockNodeUser.device(typeName: type(of: device).typeName, id: device.id)
    for use in device.nodes { nodeUsers[use.id, default: []].append(user) }
    for use in device.objects { objectUsers[use.id, default: 0] += 1 }
    if let use = device.netdev, let place { netdevUsers[use.id] = place }
    return place
  }

  /// Frees the resources of an admitted device.
  public mutating func release(_ device: any DeviceOptions, at place: PCIPlace?) {
    if let id = device.id { identifiers.remove(id) }
    if let place {
      owners[place] = nil
      multifunction.remove(place)
    }
    if let port = device as? PCIERootPortOptions {
      slots.remove(ChassisSlot(port))
      if let id = port.id { ports[id] = nil }
    }
    let user = BlockNodeUser.device(typeName: type(of: device).typeName, id: device.id)
    for use in device.nodes { remove(user, of: use.id) }
    for use in device.objects { objectUsers[use.id, default: 1] -= 1 }
    // The device's netdev may be gone, and another device may use a later one of the same id.
    if let use = device.netdev, netdevUsers[use.id] == place { netdevUsers[use.id] = nil }
  }

  private mutating func remove(_ user: BlockNodeUser, of node: String) {
    if let index = nodeUsers[node]?.firstIndex(of: user) { nodeUsers[node]?.remove(at: index) }
  }

  private func check(_ use: NodeUse) throws(DeviceProblem) {
    guard let node = blockNodes.first(where: { $0.id == use.id }) else {
      throw .unknownNode(use, known: blockNodes.map(\.id))
    }
    // Two disks that write to one file would corrupt each other's file system.
    if !node.readOnly, let user = nodeUsers[use.id]?.first { throw .nodeInUse(use, by: user) }
  }

  private func check(_ use: ObjectUse) throws(DeviceProblem) {
    guard let object = objects.first(where: { $0.id == use.id }) else {
      throw .unknownObject(use, known: objects.compactMap { $0.id?.text })
    }
    let typeName = type(of: object).typeName
    guard use.typeNames.contains(typeName) else { throw .wrongObject(use, typeName: typeName) }
  }

  private func check(_ use: NetdevUse) throws(DeviceProblem) {
    guard netdevs.contains(use.id) else { throw .unknownNetdev(use, known: netdevs.map(\.text)) }
    if let place = netdevUsers[use.id], let user = owners[place] { throw .netdevInUse(use, by: user) }
  }

  /// Returns the address that a device asks for, or the first free device number on its bus.
  private func place(_ function: PCIFunctionOptions) throws(DeviceProblem) -> PCIPlace {
    if function.bus != PCIFunctionOptions.rootBus { return try placeBelowPort(function) }
    if let address = function.address {
      let place = PCIPlace(address)
      if let owner = owners[place] { throw .addressTaken(address, by: owner) }
      return place
    }
    let all = (1..<UInt8(0x1f)).lazy.map { RequesterID(bus: 0, device: $0, function: 0) }
    let free = all.first { address in
      !reserved.contains(address.device) && !(0..<8).contains { owners[PCIPlace(address).function($0)] != nil }
    }
    guard let free else { throw .noFreeAddress }
    return PCIPlace(free)
  }

  /// Checks QEMU's rules for several functions: if there are other functions, function 0 needs `multifunction=on`, but
  /// the others do not. On a running machine function 0 must be plugged last, because software looks for the others
  /// when it finds function 0.
  private func checkFunctions(
    at place: PCIPlace, isMultifunction: Bool, isHotplugged: Bool
  ) throws(DeviceProblem) {
    if place.address.function > 0 {
      guard let owner = owners[place.function(0)] else { return }
      if isHotplugged { throw .functionZeroFound(place.address, by: owner) }
      if !multifunction.contains(place.function(0)) { throw .singleFunction(place.address) }
    } else if !isMultifunction, let other = (1..<8).map(place.function).first(where: { owners[$0] != nil }) {
      throw .functionPopulated(other.address)
    }
  }

  /// Returns a place on the link below a port. The link has only device 0.
  private func placeBelowPort(_ function: PCIFunctionOptions) throws(DeviceProblem) -> PCIPlace {
    guard let id = try? Identifier(text: function.bus), let port = ports[id] else {
      throw .unknownBus(function.bus, known: [PCIFunctionOptions.rootBus] + ports.keys.map(\.text).sorted())
    }
    let address = function.address ?? RequesterID(bus: 0, device: 0, function: 0)
    guard address.device == 0 else { throw .notOnLink(address) }
    let place = PCIPlace(address, below: port)
    if let owner = owners[place] { throw .addressTaken(address, by: owner) }
    return place
  }

  // MARK: Backends, added and removed at run time

  /// Adds a node, or throws and changes nothing.
  mutating func add(_ node: BlockNode) throws(BlockNodeProblem) {
    if blockNodes.contains(where: { $0.id == node.id }) { throw .duplicateID(node.id) }
    guard let name = node.underlying else { return blockNodes.append(node) }
    guard let below = blockNodes.first(where: { $0.id == name }) else {
      throw .unknownUnderlying(name, known: blockNodes.map(\.id))
    }
    if below.readOnly, !node.readOnly { throw .underlyingReadOnly(name) }
    if !below.readOnly, let user = nodeUsers[name]?.first { throw .underlyingInUse(name, by: user) }
    blockNodes.append(node.laid(over: below))
    nodeUsers[name, default: []].append(.node(node.id))
  }

  mutating func removeNode(_ id: String) throws(BackendProblem) {
    guard let index = blockNodes.firstIndex(where: { $0.id == id }) else { throw .noSuchNode(id) }
    if let user = nodeUsers[id]?.first { throw .nodeInUse(id, by: user) }
    let node = blockNodes.remove(at: index)
    if let name = node.underlying { remove(.node(id), of: name) }
  }

  mutating func add(_ object: any ObjectOptions, id: Identifier) throws(BackendProblem) {
    if objects.contains(where: { $0.id == id }) { throw .duplicateObject(id) }
    objects.append(object)
  }

  mutating func removeObject(_ id: Identifier) throws(BackendProblem) {
    guard let index = objects.firstIndex(where: { $0.id == id }) else { throw .noSuchObject(id) }
    let objectType = type(of: objects[index])
    let isNeeded = objectType.staysWhileUsed && objectUsers[id, default: 0] > 0
    if !objectType.comesAndGoes || isNeeded { throw .objectInUse(id) }
    objects.remove(at: index)
  }

  mutating func addNetdev(_ id: Identifier) throws(BackendProblem) {
    if netdevs.contains(id) { throw .duplicateNetdev(id) }
    netdevs.append(id)
  }

  /// Removes a netdev, even if a device uses it. The device keeps its other resources.
  mutating func removeNetdev(_ name: String) throws(BackendProblem) {
    guard let index = netdevs.firstIndex(where: { $0.text == name }) else { throw .noSuchNetdev(name) }
    netdevUsers[netdevs.remove(at: index)] = nil
  }
}

/// The reason why a backend cannot be added or removed.
public enum BackendProblem: Error, Hashable, Sendable {
  case noSuchNode(String)
  case nodeInUse(String, by: BlockNodeUser)
  case duplicateObject(Identifier)
  case noSuchObject(Identifier)
  case objectInUse(Identifier)
  case duplicateNetdev(Identifier)
  case noSuchNetdev(String)
}
