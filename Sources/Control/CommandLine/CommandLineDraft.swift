import Machine
import PCI

/// A partly parsed command line: the values that the options parsed so far have set, and for each value the option that
/// set it, for error messages.
struct CommandLineDraft {
  /// An option as the user typed it, to be quoted in an error message.
  struct Source: Hashable {
    var option: String
    var argument: String
  }

  /// The option that is being parsed.
  var source = Source(option: "", argument: "")

  /// The text to print instead of running a machine.
  private(set) var printed: String?
  mutating func print(_ text: String) { printed = text }

  var configuration = MachineConfiguration()
  var machine = MachineArguments()
  var accelerator = AcceleratorArguments()
  var processors = ProcessorArguments()
  var memory = MemoryArguments()
  var action = ActionArguments()
  var runWith = RunWithArguments()
  /// Whether `-global` selects ACPI or native hotplug; nil without such a `-global`.
  var globalHotplugWay: HotplugWay?
  var kernel: String?
  var initrd: String?
  var commandLine: String?
  /// The serial ports of the `-serial` options; nil if there was none so far. If it stays nil, the machine gets the
  /// default serial port, unless `hasDefaultDevices` is false.
  var serials: [SerialBackend]?
  /// Whether the default serial port shares its terminal with a monitor: true until a `-monitor`, `-mon` or `-qmp` is
  /// parsed.
  var hasDefaultMonitor = true
  /// The number of monitors that `-monitor` and `-qmp` have added so far. It gives the next label, `compat_monitorN`.
  var describedMonitors = 0
  var qtestDevice: Identifier?
  var qtestLog: QTestOptions.Log?
  var hasDefaultDevices = true
  /// The number of drives without an id so far, by interface.
  var unnamedDrives: [DriveArguments.Interface: Int] = [:]

  // For each part of the configuration, the option to name in an error message. The initial values name the option that
  // would set it.
  var machineSource = Source(option: "-machine", argument: "")
  var globalSource = Source(option: "-global", argument: "")
  var acceleratorSource = Source(option: "-accel", argument: "")
  var processorSource = Source(option: "-smp", argument: "")
  var memorySource = Source(option: "-m", argument: "")
  var initrdSource = Source(option: "-initrd", argument: "")
  var commandLineSource = Source(option: "-append", argument: "")
  var serialSources: [Source] = []
  var chardevSources: [Source] = []
  var monitorSources: [Source] = []
  var qtestSource = Source(option: "-qtest", argument: "")
  var qtestLogSource = Source(option: "-qtest-log", argument: "")
  var blockNodeSources: [Source] = []
  var objectSources: [Source] = []
  var netdevSources: [Source] = []
  var deviceSources: [Source] = []

  /// Returns the whole configuration, checked.
  func finish() throws(CommandLineError) -> MachineConfiguration {
    var result = configuration
    result.machineType = machine.type
    result.accelerator = try finishAccelerator()
    result.hotplugWay = try finishHotplugWay()
    result.rebootAction = action.reboot
    result.exitsWithParent = runWith.exitsWithParent
    result.processors = try mapError(try processors.topology()) { blame(processorSource, .topology($0)) }
    try finishMemory(of: &result)
    if let qtestDevice {
      var options = QTestOptions(device: qtestDevice)
      if let qtestLog { options.log = qtestLog }
      result.qtest = options
    } else if qtestLog != nil {
      throw blame(qtestLogSource, .needsQTest)
    }
    if let serials { result.serials = serials } else if hasDefaultDevices { addDefaultSerial(to: &result) }
    if let kernel {
      result.boot = MachineConfiguration.BootSource(kernel: kernel, initrd: initrd, commandLine: commandLine ?? "")
    } else if initrd != nil {
      throw blame(initrdSource, .needsKernel)
    } else if commandLine != nil {
      throw blame(commandLineSource, .needsKernel)
    }
    do {
      try result.check()
    } catch {
      guard let source = source(of: error) else { throw .configuration(error) }
      throw blame(source, .configuration(error))
    }
    return result
  }

  /// Connects COM1 to the terminal, with the monitor behind Ctrl-A C, as QEMU does with -nographic. If another
  /// character device already uses stdio, or with qtest, connects COM1 to a null device.
  private func addDefaultSerial(to result: inout MachineConfiguration) {
    guard let id = try? Identifier(text: "serial0") else { return }
    result.serials = [.chardev(id)]
    let isDriven = result.qtest != nil || result.accelerator == .qtest
    guard !isDriven, !result.chardevs.contains(where: { $0 is StdioChardevOptions }) else {
      var options = NullChardevOptions()
      options.id = id
      return result.chardevs.append(options)
    }
    var options = StdioChardevOptions()
    options.id = id
    options.multiplexed = hasDefaultMonitor
    result.chardevs.append(options)
    if hasDefaultMonitor {
      var monitor = MonitorOptions()
      monitor.device = id
      result.monitors.append(monitor)
    }
  }

  private func finishAccelerator() throws(CommandLineError) -> MachineConfiguration.Accelerator {
    if let first = machine.accelerator, let second = accelerator.accelerator, first != second {
      throw blame(acceleratorSource, .otherAccelerator(first.text))
    }
    switch accelerator.accelerator ?? machine.accelerator ?? .kvm {
    case .kvm: return .kvm(device: accelerator.device ?? "/dev/kvm")
    case .qtest:
      if accelerator.device != nil { throw blame(acceleratorSource, .deviceWithoutKVM) }
      return .qtest
    }
  }

  private func finishHotplugWay() throws(CommandLineError) -> HotplugWay {
    if let first = machine.hotplugWay, let second = globalHotplugWay, first != second {
      let problem = PropertyError.contradiction(name: "x-pci-hotplug", otherName: GlobalArguments.acpiHotplug)
      throw blame(globalSource, .property(problem, owner: nil))
    }
    return machine.hotplugWay ?? globalHotplugWay ?? .acpi
  }

  private func finishMemory(of result: inout MachineConfiguration) throws(CommandLineError) {
    if let size = memory.size { result.memory.size = size.bytes }
    if let id = machine.memoryBackend {
      guard let object = result.objects.first(where: { $0.id == id }) else {
        let known = result.objects.compactMap { $0.id?.text }
        throw blame(machineSource, .memoryBackend(.unknown(id, known: known)))
      }
      guard let backend = object as? MemoryBackendMemfdOptions, let size = backend.size?.bytes else {
        throw blame(machineSource, .memoryBackend(.wrongType(id, typeName: type(of: object).typeName)))
      }
      if let machineSize = memory.size?.bytes, machineSize != size {
        throw blame(machineSource, .memoryBackend(.sizeMismatch(machine: machineSize, backend: size)))
      }
      result.memory.size = size
      result.memory.isShared = true
      if backend.hugePages {
        result.memory.hugePages = backend.hugePageSize.map { .bytes($0.bytes) } ?? .hostDefault
      }
    }
    for (index, object) in result.objects.enumerated() {
      if let backend = object as? MemoryBackendMemfdOptions, let id = backend.id, id != machine.memoryBackend {
        throw blame(objectSources[index], .memoryBackend(.unused(id)))
      }
    }
  }

  private func blame(_ source: Source, _ problem: OptionProblem) -> CommandLineError {
    .option(option: source.option, argument: source.argument, problem)
  }

  /// Returns the option to blame for an error in the finished configuration; nil if no option set the faulty part.
  private func source(of error: ConfigurationError) -> Source? {
    switch error {
    case .nothingToBoot: nil
    case .memoryOutOfRange, .memoryNotMultiple:
      machine.memoryBackend != nil && memory.size == nil ? machineSource : memorySource
    case .processorsOutOfRange, .topologyNotOffered: processorSource
    case .tooManySerialPorts(_, let highest): serialSources.dropFirst(highest).first
    case .chardev(let index, _): index < chardevSources.count ? chardevSources[index] : nil
    case .serial(let index, _): index < serialSources.count ? serialSources[index] : nil
    case .monitor(let index, _): index < monitorSources.count ? monitorSources[index] : nil
    case .qtest: qtestSource
    case .blockNode(let index, _): blockNodeSources[index]
    case .object(let index, _): objectSources[index]
    case .netdev(let index, _): netdevSources[index]
    case .device(let index, _): deviceSources[index]
    }
  }
}

extension TypedOptions {
  /// Sets the properties that an option string assigns.
  /// - Parameter owner: The type whose properties these are; nil for properties of the option itself.
  mutating func apply(_ text: String, impliedName: String? = nil, owner: String? = nil) throws(OptionProblem) {
    let assignments = try OptionString.assignments(text, impliedName: impliedName)
    try mapError(try apply(assignments)) { OptionProblem.property($0, owner: owner) }
  }

  static func parsing(_ text: String, impliedName: String? = nil) throws(OptionProblem) -> Self {
    var options = Self()
    try options.apply(text, impliedName: impliedName)
    return options
  }
}
