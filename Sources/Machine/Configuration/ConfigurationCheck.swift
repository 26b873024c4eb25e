/// Checks that the parts of a configuration fit together. The checks open nothing: start-up checks that files exist and
/// that the host's KVM supports the number of CPUs.
extension MachineConfiguration {
  /// Checks everything. The check for a kernel comes last, so that any other mistake is reported first.
  public func check() throws(ConfigurationError) {
    try checkMemory()
    guard (1...ProcessorTopology.maximumCount).contains(processors.count) else {
      throw .processorsOutOfRange(count: processors.count, highest: ProcessorTopology.maximumCount)
    }
    if processors.sockets != 1 || processors.threadsPerCore != 1 { throw .topologyNotOffered(processors) }
    // The board has one serial port, COM1.
    if serials.count > 1 { throw .tooManySerialPorts(count: serials.count, highest: 1) }
    try checkChardevs()
    try checkObjects()
    try checkNetdevs()
    _ = try unitPlacement(try devicePlacement())
    try checkBuses()
    if boot == nil, accelerator != .qtest { throw .nothingToBoot }
  }

  private func checkBuses() throws(ConfigurationError) {
    let highest = Int(UInt8.max)
    for index in devices.indices where devices[index] is PCIERootPortOptions {
      let count = Self.lastBus(of: devices[...index])
      if count > highest { throw .device(index: index, .tooManyBuses(count: count, highest: highest)) }
    }
  }

  private func checkMemory() throws(ConfigurationError) {
    guard memory.size >= MemoryConfiguration.minimumSize, memory.size <= MemoryConfiguration.maximumSize else {
      throw .memoryOutOfRange(
        size: memory.size, lowest: MemoryConfiguration.minimumSize, highest: MemoryConfiguration.maximumSize)
    }
    var pageSize: UInt64 = 4096
    if case .bytes(let size) = memory.hugePages { pageSize = max(pageSize, size) }
    guard memory.size.isMultiple(of: pageSize) else {
      throw .memoryNotMultiple(size: memory.size, pageSize: pageSize)
    }
  }

  private func checkChardevs() throws(ConfigurationError) {
    var devices: [Identifier: any ChardevOptions] = [:]
    var hasStandardInput = false
    for (index, device) in chardevs.enumerated() {
      guard let id = device.id else { throw .chardev(index: index, .missingID) }
      if devices[id] != nil { throw .chardev(index: index, .duplicateID(id)) }
      devices[id] = device
      if device is StdioChardevOptions {
        if hasStandardInput { throw .chardev(index: index, .standardInputTaken) }
        hasStandardInput = true
      }
    }
    var used = Set<Identifier>()
    func use(_ id: Identifier, isTakenOver: Bool = false) -> ChardevProblem? {
      guard let device = devices[id] else { return .notFound(id) }
      let socket = device as? SocketChardevOptions
      if isTakenOver {
        guard socket?.path != nil else { return .notUnixSocket(id) }
        return used.insert(id).inserted ? nil : .inUse(id)
      }
      if let socket, socket.reconnect > 0 { return .reconnects(id) }
      return used.insert(id).inserted || device.multiplexed ? nil : .inUse(id)
    }
    for case (let index, .chardev(let id)) in serials.enumerated() {
      if let problem = use(id) { throw .serial(index: index, problem) }
    }
    for (index, monitor) in monitors.enumerated() {
      if let id = monitor.device, let problem = use(id) { throw .monitor(index: index, problem) }
    }
    if let qtest, let problem = use(qtest.device) { throw .qtest(problem) }
    for (index, netdev) in netdevs.enumerated() {
      if let id = netdev.chardev, let problem = use(id, isTakenOver: true) {
        throw .netdev(index: index, .chardev(problem))
      }
    }
    for (index, device) in self.devices.enumerated() {
      if let id = device.chardev, let problem = use(id, isTakenOver: true) {
        throw .device(index: index, .chardev(problem))
      }
    }
  }

  private func checkObjects() throws(ConfigurationError) {
    var seen = Set<Identifier>()
    for (index, object) in objects.enumerated() {
      guard let id = object.id else { throw .object(index: index, .missingID) }
      guard seen.insert(id).inserted else { throw .object(index: index, .duplicateID(id)) }
    }
  }

  private func checkNetdevs() throws(ConfigurationError) {
    var seen = Set<Identifier>()
    for (index, netdev) in netdevs.enumerated() {
      guard let id = netdev.id else { throw .netdev(index: index, .missingID) }
      guard seen.insert(id).inserted else { throw .netdev(index: index, .duplicateID(id)) }
    }
  }

  func checkBlockNodes() throws(ConfigurationError) {
    var earlier: [String: BlockNode] = [:]
    var users: [String: BlockNodeUser] = [:]
    for (index, node) in blockNodes.enumerated() {
      guard earlier[node.id] == nil else { throw .blockNode(index: index, .duplicateID(node.id)) }
      if let name = node.underlying {
        guard let underlying = earlier[name] else {
          throw .blockNode(index: index, .unknownUnderlying(name, known: blockNodes[..<index].map(\.id)))
        }
        if underlying.readOnly, !node.readOnly { throw .blockNode(index: index, .underlyingReadOnly(name)) }
        if !underlying.readOnly, let user = users[name] {
          throw .blockNode(index: index, .underlyingInUse(name, by: user))
        }
        users[name] = .node(node.id)
      }
      earlier[node.id] = node
    }
  }
}
