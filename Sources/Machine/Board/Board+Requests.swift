import Linux

/// A device as a monitor describes it. Its values are read by the same table as the command line's, once it is known
/// that its bus takes a device now.
public struct DeviceDescription: Sendable {
  public var kind: any DeviceOptions.Type
  /// Nil for the bus that such devices are on where nothing is said.
  public var bus: String?
  /// Without `driver` and `bus`.
  public var assignments: [PropertyAssignment]
  /// The open file that `fd` names.
  public var file: PassedDescriptor?

  public init(_ kind: any DeviceOptions.Type, bus: String? = nil, _ assignments: [PropertyAssignment]) {
    self.kind = kind
    self.bus = bus
    self.assignments = assignments
  }

  func options() throws(PropertyError) -> any DeviceOptions {
    var assignments = assignments
    // Only on PCI is the bus a property.
    if let bus, kind is any PCIDeviceOptions.Type {
      assignments.append(PropertyAssignment(name: "bus", value: bus))
    }
    let options = try kind.init(assignments)
    guard let file, var taking = options as? any DeviceOptions & DescriptorTaking else { return options }
    taking.file?.file = file
    return taking
  }
}

/// What monitors ask of the devices. In QEMU's order: of several things that are wrong the same one is told.
extension Board {
  /// Admits a device while the machine runs.
  /// - Throws: why not; then nothing has changed.
  func admit(_ description: DeviceDescription) throws(RequestError) -> Device {
    let kind = description.kind
    if kind.bus == .system { throw .notPluggable }
    let bus = try bus(for: description)
    guard bus.isHotpluggable else { throw .noHotplug(bus: bus.name) }
    let options: any DeviceOptions
    do throws(PropertyError) {
      options = try description.options()
    } catch {
      throw .property(typeName: kind.typeName, error)
    }
    if let device = options as? VFIOPCIOptions, let descriptor = device.descriptor { throw .noDescriptor(descriptor) }
    do throws(DeviceProblem) {
      let device = try devices.admit(options, isHotplugged: true)
      trace.recordAdmission(device)
      return device
    } catch {
      throw .refused(typeName: kind.typeName, error)
    }
  }

  private func bus(for description: DeviceDescription) throws(RequestError) -> LiveBus {
    let kind = description.kind
    guard let name = description.bus else {
      guard let bus = buses.standard(for: kind.bus) else { throw .noSuchBus(kind.bus.rawValue) }
      return bus
    }
    guard let bus = buses.named(name) else { throw .noSuchBus(name) }
    guard bus.kind == kind.bus else { throw .wrongBus(typeName: kind.typeName, bus.kind) }
    return bus
  }

  /// A device that can be taken away while the machine runs.
  /// - Parameter name: its id, or its path in QEMU's object tree.
  func removableDevice(named name: String) throws(RequestError) -> Device {
    guard let device = devices.all.first(where: { $0.path == name || $0.id?.text == name }) else {
      throw .noSuchDevice(name)
    }
    let own = (device.options as? any PCIDeviceOptions).flatMap { buses.named($0.function.bus) }
    if let bus = own ?? buses.standard(for: type(of: device.options).bus), !bus.isHotpluggable {
      throw .noHotplug(bus: bus.name)
    }
    return device
  }

  // MARK: Backends

  /// The file that the node names is known to be there.
  func add(_ node: BlockNode) throws(RequestError) {
    do {
      try devices.add(node)
    } catch {
      throw .node(error)
    }
  }

  func removeNode(_ id: String) throws(RequestError) {
    do {
      try devices.removeNode(id)
    } catch {
      throw .backend(error)
    }
  }

  /// Changes the size of a node's file, for the asker's thread: it waits for the host.
  func resizeNode(_ id: String, to size: UInt64) throws(RequestError) {
    let nodes = devices.blockNodes
    guard let node = nodes.first(where: { $0.id == id }) else { throw .backend(.noSuchNode(id)) }
    if node.readOnly { throw .readOnlyNode(id) }
    try disks.resize(node, to: size, among: nodes, memory: memory)
  }

  /// The file that the object names is known to be there.
  func add(_ object: any ObjectOptions) throws(RequestError) {
    guard let id = object.id else { return }
    if let object = object as? IOMMUFDOptions, let descriptor = object.descriptor { throw .noDescriptor(descriptor) }
    do {
      try devices.add(object, id: id)
    } catch {
      throw .backend(error)
    }
  }

  func removeObject(_ id: Identifier) throws(RequestError) {
    do {
      try devices.removeObject(id)
    } catch {
      throw .backend(error)
    }
    passthrough.remove(id)
  }
}

extension MachineRequest {
  /// Opens and closes the file that a new backend names, so that a mistake in a name shows at once. A file's server may
  /// not answer: this is for the asker's thread.
  func checkFile(memory: GuestMemory) throws(StartError) {
    switch self {
    case .addNode(let node) where node.underlying == nil: _ = try node.openUnlocked(memory: memory)
    case .addObject(let object as any EntropyObjectOptions):
      guard case .file(let path) = object.entropySource else { return }
      do {
        _ = try FileDescriptor(openingSource: path)
      } catch {
        throw .file(option: "-object", error)
      }
    case .addNode, .addObject, .pause, .resume, .addDevice, .removeDevice, .removeNode, .removeObject, .resizeNode,
      .setRebootAction:
      break
    }
  }
}
