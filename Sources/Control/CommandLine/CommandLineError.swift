import Machine

/// Why a command line makes no configuration.
enum CommandLineError: Error, Hashable {
  case unknownOption(String)
  case missingArgument(option: String)
  /// A word that no option takes. QEMU would make it the first IDE disk.
  case bareWord(String)
  /// - Parameters:
  ///   - option: as typed, with its dash.
  ///   - argument: empty for an option that takes none.
  case option(option: String, argument: String, OptionProblem)
  /// No single option is to blame.
  case configuration(ConfigurationError)
}

/// What is wrong with one option.
enum OptionProblem: Error, Hashable {
  case emptyName
  case missing(WordKind)
  case unknown(WordKind, name: String, known: [String])
  /// - Parameter owner: the kind of device or object; nil for the option itself.
  case property(PropertyError, owner: String?)
  /// Of an argument in JSON, in QEMU's words.
  case json(String)
  /// `-kernel ''`.
  case empty
  /// `-initrd` and `-append` without `-kernel`.
  case needsKernel
  /// `-qtest-log` without `-qtest`.
  case needsQTest
  /// Two options name accelerators, and this is the other one.
  case otherAccelerator(String)
  /// `-accel qtest,device=`.
  case deviceWithoutKVM
  /// Of `-cpu`: features that were to be switched.
  case features(String)
  case topology(TopologyProblem)
  /// The object of `-machine memory-backend`.
  case memoryBackend(MemoryBackendProblem)
  case configuration(ConfigurationError)

  enum WordKind: Hashable {
    case device, object, processorModel, display, network, chardev, chardevBackend, logItem, adapter
    case parallelBackend, audioDriver, traceEvent, globalProperty
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
