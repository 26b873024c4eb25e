import Hardware

/// A mistake in a configuration, found before anything is opened.
public enum ConfigurationError: Error, Hashable, Sendable {
  case nothingToBoot
  /// In bytes.
  case memoryOutOfRange(size: UInt64, lowest: UInt64, highest: UInt64)
  /// In bytes.
  case memoryNotMultiple(size: UInt64, pageSize: UInt64)
  case processorsOutOfRange(count: Int, highest: Int)
  /// So far CPUID describes only one socket of single-threaded cores.
  case topologyNotOffered(ProcessorTopology)
  case tooManySerialPorts(count: Int, highest: Int)
  /// - Parameter index: into `chardevs`.
  case chardev(index: Int, ChardevProblem)
  /// - Parameter index: into `serials`.
  case serial(index: Int, ChardevProblem)
  /// - Parameter index: into `monitors`.
  case monitor(index: Int, ChardevProblem)
  case qtest(ChardevProblem)
  /// - Parameter index: into `blockNodes`.
  case blockNode(index: Int, BlockNodeProblem)
  /// - Parameter index: into `objects`.
  case object(index: Int, ObjectProblem)
  /// - Parameter index: into `netdevs`.
  case netdev(index: Int, NetdevProblem)
  /// - Parameter index: into `devices`.
  case device(index: Int, DeviceProblem)
}

public enum ChardevProblem: Hashable, Sendable {
  case missingID
  case duplicateID(Identifier)
  case standardInputTaken
  case notFound(Identifier)
  /// Another frontend uses the device, which is not multiplexed.
  case inUse(Identifier)
  /// The device passes descriptors, which only a socket in the file system can.
  case notUnixSocket(Identifier)
  /// Only a device that takes over the socket connects again.
  case reconnects(Identifier)
}

public enum BlockNodeProblem: Error, Hashable, Sendable {
  case duplicateID(String)
  case unknownUnderlying(String, known: [String])
  case underlyingInUse(String, by: BlockNodeUser)
  case underlyingReadOnly(String)
}

public enum ObjectProblem: Hashable, Sendable {
  case missingID
  case duplicateID(Identifier)
}

public enum NetdevProblem: Hashable, Sendable {
  case missingID
  case duplicateID(Identifier)
  /// The character device that the netdev takes over.
  case chardev(ChardevProblem)
}

public enum DeviceProblem: Error, Hashable, Sendable {
  case duplicateID(Identifier)
  case unknownNode(NodeUse, known: [String])
  case nodeInUse(NodeUse, by: BlockNodeUser)
  case unknownObject(ObjectUse, known: [String])
  case wrongObject(ObjectUse, typeName: String)
  case unknownNetdev(NetdevUse, known: [String])
  /// Another device uses the netdev.
  case netdevInUse(NetdevUse, by: AddressOwner)
  /// The character device that the device takes over.
  case chardev(ChardevProblem)
  case tooManyUnits(highest: Int)
  /// Two remapping units have no `devices=`. The value is the other unit's id.
  case otherUnitIncludesAll(Identifier?)
  /// A name in a remapping unit's `devices=` is neither a device's id nor an address.
  case unknownDevice(String, known: [String])
  /// The named device is not on PCI.
  case notRemappable(String)
  /// Another remapping unit already includes the named device. The second value is that unit's id.
  case deviceHasUnit(String, Identifier?)
  case addressTaken(RequesterID, by: AddressOwner)
  case noFreeAddress
  /// Function 0 of the same device number has no `multifunction=on`.
  case singleFunction(RequesterID)
  /// The device is a function 0 without `multifunction=on`, but this other function exists.
  case functionPopulated(RequesterID)
  /// The guest has already found function 0, and does not look for further functions.
  case functionZeroFound(RequesterID, by: AddressOwner)
  /// No earlier root port has this id.
  case unknownBus(String, known: [String])
  /// The link below a port has only device 0.
  case notOnLink(RequesterID)
  /// With this device, the root ports and their reservations need more bus numbers than exist.
  case tooManyBuses(count: Int, highest: Int)
  /// Another port has the same chassis and slot numbers.
  case slotTaken(chassis: UInt8, slot: UInt16)
}

/// The user of a block node.
public enum BlockNodeUser: Hashable, Sendable {
  case device(typeName: String, id: Identifier?)
  case node(String)
}

/// The function that occupies a PCI address.
public enum AddressOwner: Hashable, Sendable {
  case hostBridge
  case isaBridge
  case device(typeName: String, id: Identifier?)
}
