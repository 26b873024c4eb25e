import Hardware
import Machine

/// Texts for configurations whose parts do not fit together.
extension ErrorText {
  static func text(for error: ConfigurationError) -> String {
    switch error {
    case .nothingToBoot: "there is nothing to boot: add -kernel FILE (-help lists the options)"
    case .memoryOutOfRange(let size, let lowest, let highest):
      size < lowest
        ? "\(self.size(size)) is too little memory: at least \(self.size(lowest))"
        : "\(self.size(size)) is too much memory: at most \(self.size(highest))"
    case .memoryNotMultiple(let size, let pageSize):
      "\(self.size(size)) of memory is not a multiple of the page size, \(self.size(pageSize))"
    case .processorsOutOfRange(let count, let highest): "\(count) CPUs: there can be 1 to \(highest)"
    case .topologyNotOffered: "sockets and threads must be 1: for now, all CPUs are cores of one socket"
    case .tooManySerialPorts(let count, let highest):
      "\(count) serial ports are requested, but the machine has \(highest) (COM1)"
    case .chardev(_, let problem), .serial(_, let problem), .monitor(_, let problem), .qtest(let problem):
      text(for: problem)
    case .blockNode(_, let problem): text(for: problem)
    case .object(_, .missingID): "id is missing: every object needs one"
    case .object(_, .duplicateID(let id)): duplicate(id.text)
    // The next two texts are QEMU's.
    case .netdev(_, .missingID): "Parameter 'id' is missing"
    case .netdev(_, .duplicateID(let id)): "Duplicate ID '\(id)' for netdev"
    case .netdev(_, .chardev(let problem)): text(for: problem)
    case .device(_, let problem): text(for: problem)
    }
  }

  private static func duplicate(_ id: String) -> String { "id \(quoted(id)) is already taken" }

  /// The texts are QEMU's.
  static func text(for problem: ChardevProblem) -> String {
    switch problem {
    case .missingID: "chardev: no id specified"
    case .duplicateID(let id): "Duplicate ID '\(id)' for chardev"
    case .standardInputTaken: "cannot use stdio by multiple character devices"
    case .notFound(let id): "chardev \"\(id)\" not found"
    case .inUse(let id): "chardev '\(id)' is already in use"
    case .notUnixSocket(let id): "chardev '\(id)' cannot pass descriptors: vhost-user needs socket,path=PATH"
    case .reconnects(let id): "chardev '\(id)': reconnect is only offered for vhost-user"
    }
  }

  static func text(for problem: BlockNodeProblem) -> String {
    switch problem {
    case .duplicateID(let id): duplicate(id)
    case .unknownUnderlying(let name, let known):
      "file: no node \(quoted(name)) is defined before this one" + nearest(name, known)
    case .underlyingInUse(let name, let user): "file: \(quoted(name)) is in use by \(text(for: user))"
    case .underlyingReadOnly(let name): "file: \(quoted(name)) is read-only: add read-only=on to this node, too"
    }
  }

  static func text(for problem: DeviceProblem) -> String {
    switch problem {
    case .duplicateID(let id): duplicate(id.text)
    case .chardev(let problem): text(for: problem)
    case .unknownNode(let use, let known):
      "\(use.property): no drive \(quoted(use.id))"
        + (known.isEmpty ? ": no -drive or -blockdev is given" : nearest(use.id, known))
    case .nodeInUse(let use, let user):
      "\(use.property): \(quoted(use.id)) is in use by \(text(for: user)); only a read-only drive can be shared"
    case .unknownObject(let use, let known):
      "\(use.property): no object \(quoted(use.id.text))"
        + (known.isEmpty ? ": no -object is given" : nearest(use.id.text, known))
    case .wrongObject(let use, let typeName):
      "\(use.property): \(quoted(use.id.text)) is of type \(typeName), but must be of type "
        + use.typeNames.joined(separator: " or ")
    case .unknownNetdev(let use, let known):
      "\(use.property): no netdev \(quoted(use.id.text))"
        + (known.isEmpty ? ": no -netdev is given" : nearest(use.id.text, known))
    case .netdevInUse(let use, let user): "\(use.property): \(quoted(use.id.text)) is in use by \(text(for: user))"
    case .tooManyUnits(let highest): "there can be at most \(highest) intel-iommu devices"
    case .otherUnitIncludesAll(let id):
      "\(unit(id)) already covers all devices: add devices= to one of the two"
    case .unknownDevice(let name, let known):
      "devices: \(quoted(name)) is neither the id of a PCI device nor an address on bus 0"
        + nearest(name, known)
    case .notRemappable(let name): "devices: \(quoted(name)) is not a PCI device: no IOMMU can translate for it"
    case .deviceHasUnit(let name, let id): "devices: \(unit(id)) already covers \(quoted(name)) or a device below it"
    case .addressTaken(let address, let owner):
      "addr: \(address.text) is taken by \(text(for: owner))"
    case .noFreeAddress: "bus 0 has no free device number"
    // The next two texts are QEMU's, and so is `Bus … not found`.
    case .singleFunction(let address):
      "PCI: single function device can't be populated in function \(hexadecimal(address))"
    case .functionPopulated(let address):
      "PCI: \(String(address.device, radix: 16)).0 indicates single function, but \(hexadecimal(address)) is already "
        + "populated."
    case .functionZeroFound(let address, let owner):
      "function 0 of slot \(address.device) is in use by \(text(for: owner)): "
        + "unplug it, add the other functions, and add function 0 last"
    case .unknownBus(let name, let known): "Bus \(quoted(name)) not found" + nearest(name, known)
    case .notOnLink(let address):
      "addr: slot \(address.device) is not valid below a root port, which only allows plugging into slot 0"
    case .tooManyBuses(let count, let highest):
      "the root ports reserve \(count) bus numbers, but only \(highest) are available: reduce bus-reserve"
    case .slotTaken(let chassis, let slot):
      "chassis \(chassis) already has a slot \(slot): give each root port its own chassis or slot"
    }
  }

  private static func hexadecimal(_ address: RequesterID) -> String {
    "\(String(address.device, radix: 16)).\(address.function)"
  }

  private static func unit(_ id: Identifier?) -> String {
    id.map { "intel-iommu \(quoted($0.text))" } ?? "another intel-iommu"
  }

  private static func text(for user: BlockNodeUser) -> String {
    switch user {
    case .device(let typeName, let id): id.map { "\(typeName) \(quoted($0.text))" } ?? "another \(typeName)"
    case .node(let name): "node \(quoted(name))"
    }
  }

  private static func text(for owner: AddressOwner) -> String {
    switch owner {
    case .hostBridge: "the host bridge"
    case .isaBridge: "the ISA bridge"
    case .device(let typeName, let id): id.map { "\(typeName) \(quoted($0.text))" } ?? "another \(typeName)"
    }
  }
}
