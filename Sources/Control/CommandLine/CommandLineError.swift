import Machine

/// The reason why a command line was refused.
enum CommandLineError: Error, Hashable {
  case unknownOption(String)
  case missingArgument(option: String)
  /// A word without an option before it. QEMU would use it as the first IDE disk.
  case bareWord(String)
  /// - Parameters:
  ///   - option: As typed, with its dash.
  ///   - argument: Empty for an option that takes none.
  case option(option: String, argument: String, OptionProblem)
  /// No single option causes the error.
  case configuration(ConfigurationError)
}

/// The error in one option.
enum OptionProblem: Error, Hashable {
  case emptyName
  case missing(WordKind)
  case unknown(WordKind, name: String, known: [String])
  /// - Parameter owner: The type of the device or object; nil for the option itself.
  case property(PropertyError, owner: String?)
  /// An error in a JSON argument, in QEMU's words.
  case json(String)
  /// `-kernel ''`.
  case empty
  /// `-initrd` and `-append` without `-kernel`.
  case needsKernel
  /// `-qtest-log` without `-qtest`.
  case needsQTest
  /// Two options select different accelerators. The value is the accelerator of the earlier option.
  case otherAccelerator(String)
  /// `-accel qtest,device=`.
  case deviceWithoutKVM
  /// A property of the network card that `-nic` does not take.
  case cardProperty(String)
  /// CPU features that `-cpu` tries to switch on or off.
  case features(String)
  case topology(TopologyProblem)
  /// An error in the object that `-machine memory-backend` names.
  case memoryBackend(MemoryBackendProblem)
  case configuration(ConfigurationError)

  /// The raw values are the words of the error's text.
  enum WordKind: String {
    case device, object, display, network
    case netdev = "netdev type"
    case processorModel = "CPU model"
    case chardev = "character device"
    case chardevBackend = "character backend"
    case logItem = "log item"
    case adapter = "display adapter"
    case parallelBackend = "parallel backend"
    case audioDriver = "audio driver"
    case traceEvent = "trace event"
    case globalProperty = "global property"
  }

  enum TopologyProblem: Error, Hashable {
    case productIsNot(count: Int, product: Int)
    case notDivisible(count: Int, by: Int)
    case tooMany(highest: Int)
    case hotplug
  }

  enum MemoryBackendProblem: Hashable {
    case unknown(Identifier, known: [String])
    case wrongType(Identifier, typeName: String)
    /// In bytes.
    case sizeMismatch(machine: UInt64, backend: UInt64)
    case unused(Identifier)
  }
}
