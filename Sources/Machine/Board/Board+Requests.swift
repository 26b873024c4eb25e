import Linux

/// A device as a monitor describes it. The values of its properties are parsed after the check that the bus accepts a
/// device now. The table that parses them is that of the command line.
public struct DeviceDescription: Sendable {
  public var type: any DeviceOptions.Type
  /// The value of `bus`; nil for the default bus of the device type.
  public var bus: String?
  /// The properties, without `driver` and `bus`.
  public var assignments: [PropertyAssignment]
  /// The open file that the property `fd` names.
  public var file: PassedDescriptor?

  public init(_ type: any DeviceOptions.Type, bus: String? = nil, _ assignments: [PropertyAssignment]) {
    self.type = type
    self.bus = bus
    self.assignments = assignments
  }

  func options() throws(PropertyError) -> any DeviceOptions {
    var assignments = assignments
    // Only PCI devices have a property for their bus.
    if let bus, type is any PCIDeviceOptions.Type {
      assignments.append(PropertyAssignment(name: "bus", value: bus))
    }
    let options = try type.init(assignments)
    guard let file, var optionsWithFile = options as? any DeviceOptions & DescriptorTaking else { return options }
    optionsWithFile.file?.file = file
    return optionsWithFile
  }
}

/// Requests of monitors about devices. The checks are in QEMU's order, so that a request with several mistakes gets the
/// same error as from QEMU.
extension Board {
  /// Admits a device while the machine runs.
  /// - Throws: the reason why the device is refused. After an error, nothing has changed.
  func admit(_ description: DeviceDescription) throws(RequestError) -> Device {
    let deviceType = description.type
    if deviceType.bus == .system { throw .notPluggable }
    let bus = try bus(for: description)
    guard bus.isHotpluggable else { throw .noHotplug(bus: bus.name) }
    let options = try mapError(try description.options()) {
      RequestError.property(typeName: deviceType.typeName, $0)
    }
    if let device = options as? VFIOPCIOptions, let descriptor = device.descriptor { throw .noDescriptor(descriptor) }
    let device = try mapError(try devices.admit(options, isHotplugged: true)) {
      RequestError.refused(typeName: deviceType.typeName, $0)
    }
    trace.recordAdmission(device)
    return device
  }

  private func bus(for description: DeviceDescription) throws(RequestError) -> LiveBus {
    let deviceType = description.type
    guard let name = description.bus else {
      guard let bus = buses.standard(for: deviceType.bus) else { throw .noSuchBus(deviceType.bus.rawValue) }
      return bus
    }
    guard let bus = buses.named(name) else { throw .noSuchBus(name) }
    guard bus.type == deviceType.bus else { throw .wrongBus(typeName: deviceType.typeName, bus.type) }
    return bus
  }

  /// Finds a device that can be removed while the machine runs.
  /// - Parameter name: the device's id, or its path in the QOM tree.
  func removableDevice(named name: String) throws(RequestError) -> Device {
    guard let device = devices.all.first(where: { $0.path == name || $0.id?.text == name }) else {
      throw .noSuchDevice(name)
    }
    let namedBus = (device.options as? any PCIDeviceOptions).flatMap { buses.named($0.function.bus) }
    if let bus = namedBus ?? buses.standard(for: type(of: device.options).bus), !bus.isHotpluggable {
      throw .noHotplug(bus: bus.name)
    }
    return device
  }

  // MARK: Backends

  /// Adds a block node. The requester has already checked that its file can be opened (`MachineRequest.checkFile`).
  func add(_ node: BlockNode) throws(RequestError) {
    try mapError(try devices.add(node), RequestError.node)
  }

  func removeNode(_ id: String) throws(RequestError) {
    try mapError(try devices.removeNode(id), RequestError.backend)
  }

  /// Changes the size of a node's file. Called on the requester's thread, because it blocks on the host.
  func resizeNode(_ id: String, to size: UInt64) throws(RequestError) {
    let nodes = devices.blockNodes
    guard let node = nodes.first(where: { $0.id == id }) else { throw .backend(.noSuchNode(id)) }
    if node.readOnly { throw .readOnlyNode(id) }
    try disks.resize(node, to: size, among: nodes, memory: memory)
  }

  /// Adds an object. The requester has already checked that its file can be opened (`MachineRequest.checkFile`).
  func add(_ object: any ObjectOptions) throws(RequestError) {
    guard let id = object.id else { return }
    if let object = object as? IOMMUFDOptions, let descriptor = object.descriptor { throw .noDescriptor(descriptor) }
    try mapError(try devices.add(object, id: id), RequestError.backend)
  }

  func removeObject(_ id: Identifier) throws(RequestError) {
    try mapError(try devices.removeObject(id), RequestError.backend)
    passthrough.remove(id.text)
  }
}

extension Board {
  /// Opens and adds a netdev. Called on the requester's thread.
  func add(_ netdev: any NetdevOptions) throws(RequestError) {
    guard let id = netdev.id else { return }
    if let missing = netdev.descriptors.first(where: { $0.file == nil }) { throw .noDescriptor(missing.text) }
    do throws(NetdevError) {
      try networks.open(netdev, id: id, memory: memory, chardevs: chardevs)
    } catch {
      switch error {
      case .duplicate: throw .backend(.duplicateNetdev(id))
      case .ended: throw .ended
      case .host(let error): throw .failed(.netdev(typeName: type(of: netdev).typeName, id: id, error))
      }
    }
    do {
      try devices.addNetdev(id)
    } catch {
      networks.close(id.text)
      throw .backend(error)
    }
  }

  /// Opens a netdev of the configuration, which the admission knows already, and waits for its start.
  func openNetdev(_ netdev: any NetdevOptions) throws(StartError) {
    guard let id = netdev.id else { return }
    do throws(NetdevError) {
      try networks.open(netdev, id: id, memory: memory, chardevs: chardevs)
    } catch {
      guard case .host(let error) = error else { return }
      throw .netdev(typeName: type(of: netdev).typeName, id: id, error)
    }
    try mapError(try networks.awaitStart(of: id)) { StartError.netdev(typeName: type(of: netdev).typeName, id: id, $0) }
  }

  /// Removes and closes a netdev. Called on the requester's thread. A device that uses it stays, and its link goes
  /// down.
  func removeNetdev(_ name: String) throws(RequestError) {
    try mapError(try devices.removeNetdev(name), RequestError.backend)
    networks.close(name)
  }

  func setLink(_ name: String, up: Bool) throws(RequestError) {
    if !networks.setLink(name, up: up) { throw .noSuchDevice(name) }
  }
}

extension MachineRequest {
  /// Opens and closes the file that a new backend names, so that a wrong name is reported at once. Called on the
  /// requester's thread: the open may block for long, for example when a file server does not answer.
  func checkFile(memory: GuestMemory) throws(StartError) {
    switch self {
    case .addNode(let node) where node.underlying == nil: _ = try node.openUnlocked(memory: memory)
    case .addObject(let object as any EntropyObjectOptions):
      guard case .file(let path) = object.entropySource else { return }
      _ = try mapError(try FileDescriptor(openingSource: path)) { StartError.file(option: "-object", $0) }
    case .addNode, .addObject, .pause, .resume, .addDevice, .removeDevice, .removeNode, .removeObject, .resizeNode,
      .addNetdev, .removeNetdev, .setLink, .setRebootAction:
      break
    }
  }
}
