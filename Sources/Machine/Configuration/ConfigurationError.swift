import Hardware

/// Why a configuration makes no machine, found before anything is opened.
public enum ConfigurationError: Error, Hashable, Sendable {
  case nothingToBoot
  /// In bytes.
  case memoryOutOfRange(size: UInt64, lowest: UInt64, highest: UInt64)
  /// In bytes.
  case memoryNotMultiple(size: UInt64, pageSize: UInt64)
  case processorsOutOfRange(count: Int, highest: Int)
  /// CPUID tells of one socket of single-threaded cores yet.
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
  /// - Parameter index: into `devices`.
  case device(index: Int, DeviceProblem)
}

public enum ChardevProblem: Hashable, Sendable {
  case missingID
  case duplicateID(Identifier)
  case standardInputTaken
  case notFound(Identifier)
  /// By another frontend, and it is not multiplexed.
  case inUse(Identifier)
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

public enum DeviceProblem: Error, Hashable, Sendable {
  case duplicateID(Identifier)
  case unknownNode(NodeUse, known: [String])
  case nodeInUse(NodeUse, by: BlockNodeUser)
  case unknownObject(ObjectUse, known: [String])
  case wrongObject(ObjectUse, typeName: String)
  case tooManyUnits(highest: Int)
  /// Two remapping units name no devices. The other's id.
  case otherUnitIncludesAll(Identifier?)
  /// What a remapping unit is to translate for is neither a device's id nor an address.
  case unknownDevice(String, known: [String])
  /// It is not on PCI.
  case notRemappable(String)
  /// A remapping unit names it already. That unit's id.
  case deviceHasUnit(String, Identifier?)
  case addressTaken(RequesterID, by: AddressOwner)
  case noFreeAddress
  /// Function 0 there says that it is alone.
  case singleFunction(RequesterID)
  /// The device, a function 0, says that it is alone, and there is this one.
  case functionPopulated(RequesterID)
  /// Software has found function 0 already and looks for no other.
  case functionZeroFound(RequesterID, by: AddressOwner)
  /// No root port before it has the id.
  case unknownBus(String, known: [String])
  /// Below a port there is device 0 alone.
  case notOnLink(RequesterID)
  /// With it, root ports and what they reserve have more numbers than there are.
  case tooManyBuses(count: Int, highest: Int)
  /// Another port has both numbers.
  case slotTaken(chassis: UInt8, slot: UInt16)
}

/// Who has a block node already.
public enum BlockNodeUser: Hashable, Sendable {
  case device(typeName: String, id: Identifier?)
  case node(String)
}

/// Who sits at an address on bus 0.
public enum AddressOwner: Hashable, Sendable {
  case hostBridge
  case isaBridge
  case device(typeName: String, id: Identifier?)
}
