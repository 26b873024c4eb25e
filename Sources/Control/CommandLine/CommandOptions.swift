import Machine

/// All options, in the groups and the order in which help shows them. The names are QEMU's (qemu-options.hx).
enum CommandOptions {
  struct Group: Sendable {
    let title: String
    let options: [CommandOption]
  }

  static let groups = [
    Group(title: "Machine", options: machine),
    Group(title: "Boot", options: boot),
    Group(title: "Devices", options: devices),
    Group(title: "Block devices", options: block),
    Group(title: "Console and display", options: console),
    Group(title: "Running", options: running),
  ]

  static let all = groups.flatMap(\.options)

  static func named(_ name: String) -> CommandOption? { all.first { $0.names.contains(name) } }

  private static let machine = [
    CommandOption(
      "machine", "M", argument: "[type=]q35[,PROP=VALUE...]",
      help: "machine type and its properties (-machine q35,help lists them):",
      "kernel-irqchip can only be split; memory-backend=ID uses an -object as RAM;",
      "x-pci-hotplug=acpi|native selects how devices below root ports are hot-plugged (default: acpi)"
    ) { (draft, text) throws(OptionProblem) in
      draft.machineSource = draft.source
      if asksHelp(text) { return draft.print(HelpText.machineTypes) }
      if asksForProperties(text) { return draft.print(HelpText.properties(of: MachineArguments.self, title: "q35")) }
      try draft.machine.apply(text, impliedName: "type")
    },
    CommandOption(
      "accel", argument: "[accel=]kvm|qtest[,device=PATH]",
      help: "accelerator: kvm, with device=PATH (default: /dev/kvm), or qtest, which runs no CPU"
    ) { (draft, text) throws(OptionProblem) in
      if asksHelp(text) { return draft.print(HelpText.accelerators) }
      draft.acceleratorSource = draft.source
      let earlier = draft.accelerator.accelerator
      try draft.accelerator.apply(text, impliedName: "accel")
      try agree(earlier, draft.accelerator.accelerator)
    },
    CommandOption("enable-kvm", help: "the same as -accel kvm") { (draft) throws(OptionProblem) in
      draft.acceleratorSource = draft.source
      try agree(draft.accelerator.accelerator, .kvm)
      draft.accelerator.accelerator = .kvm
    },
    CommandOption(
      "global", argument: "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=on|off",
      help: "the same as -machine x-pci-hotplug=acpi (on) or native (off), in QEMU's words"
    ) { (draft, text) throws(OptionProblem) in
      draft.globalSource = draft.source
      draft.globalHotplugWay = try GlobalArguments.reading(text).hotplugWay()
    },
    CommandOption(
      "cpu", argument: "host", help: "CPU model: the host's, as KVM offers it"
    ) { (draft, text) throws(OptionProblem) in
      if asksHelp(text) { return draft.print(HelpText.processorModels) }
      let parts = text.split(separator: ",", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.first == "host" else {
        throw .unknown(.processorModel, name: parts.first.map(String.init) ?? "", known: ["host"])
      }
      if parts.count == 2 { throw .features(String(parts[1])) }
    },
    CommandOption(
      "smp", argument: "[cpus=]N[,sockets=1][,cores=N][,threads=1]",
      help: "number of CPUs, all of them cores of one socket (default: 1)"
    ) { (draft, text) throws(OptionProblem) in
      draft.processorSource = draft.source
      try draft.processors.apply(text, impliedName: "cpus")
    },
    CommandOption(
      "m", argument: "[size=]SIZE",
      help: "RAM size; a number without K, M, G or T is in MiB (default: 128M; minimum: 16M)"
    ) { (draft, text) throws(OptionProblem) in
      draft.memorySource = draft.source
      try draft.memory.apply(text, impliedName: "size")
    },
  ]

  private static let boot = [
    CommandOption(
      "kernel", argument: "FILE", help: "bzImage, ELF vmlinux (PVH) or Multiboot ELF to boot"
    ) { (draft, text) throws(OptionProblem) in
      draft.kernel = try notEmpty(text)
    },
    CommandOption(
      "initrd", argument: "FILE", help: "initial RAM disk for the kernel"
    ) { (draft, text) throws(OptionProblem) in
      draft.initrdSource = draft.source
      draft.initrd = try notEmpty(text)
    },
    CommandOption(
      "append", argument: "TEXT", help: "the kernel's command line"
    ) { (draft, text) throws(OptionProblem) in
      draft.commandLineSource = draft.source
      draft.commandLine = text
    },
  ]

  private static let devices = [
    CommandOption(
      "device", argument: "TYPE[,PROP=VALUE...]", help: "add a device (-device help lists the types,",
      "-device TYPE,help the properties of one)", action: DeviceOption.read),
    CommandOption(
      "object", argument: "TYPE,id=ID[,PROP=VALUE...]", help: "add an object (-object help lists the types,",
      "-object TYPE,help the properties of one)", action: ObjectOption.read),
    CommandOption(
      "netdev", argument: "TYPE,id=ID[,PROP=VALUE...]",
      help: "the host's end of a network device (-netdev help lists the types,",
      "-netdev TYPE,help the properties of one)", action: NetdevOption.read),
    CommandOption(
      "nic", argument: "[TYPE][,PROP=VALUE...]|none",
      help: "a -netdev (default: user) and a virtio-net-pci for it, in one option (-nic help lists the types);",
      "mac, addr, iommu_platform and model are properties of the virtio-net-pci, all others of the -netdev",
      action: NicOption.read),
    CommandOption("nodefaults", help: "do not add the default serial port and monitor") {
      $0.hasDefaultDevices = false
    },
    CommandOption("no-user-config", help: "read no configuration file (accepted: Nestling never reads one)") { _ in },
    CommandOption("net", only: "none", of: .network, help: "no default network card (accepted: Nestling has none)"),
  ]

  private static let block = [
    CommandOption(
      "drive", argument: "file=FILE,if=none,id=ID[,format=raw][,readonly=on][,discard=unmap]",
      help: "a raw image for -device ...,drive=ID; if=virtio also adds a virtio-blk-pci for it",
      action: DriveOption.read),
    CommandOption(
      "blockdev", argument: "driver=file|raw,node-name=ID,filename=FILE[,read-only=on][,discard=unmap]",
      help: "a block node: driver file opens FILE; raw reads file=NODE or file.driver=file,file.filename=FILE",
      action: DriveOption.readNode),
  ]

  private static let console = [
    CommandOption(
      "chardev", argument: "TYPE,id=ID[,PROP=VALUE...]",
      help: "add a character device, for -serial chardev:ID and -mon (-chardev help lists the types,",
      "-chardev TYPE,help the properties of one)", action: ChardevArguments.readDevice),
    CommandOption(
      "serial", argument: "BACKEND",
      help: "serial port: none, null, stdio (Ctrl-A h lists its commands), mon:stdio (with a monitor; default),",
      "file:PATH, unix:PATH[,server=on][,wait=off], tcp:HOST:PORT[,server=on][,wait=off], chardev:ID",
      action: ChardevArguments.readSerial),
    CommandOption(
      "mon", argument: "[chardev=]ID[,mode=readline|control][,pretty=on]",
      help: "a monitor on a character device: the human monitor (readline) or QMP (control)",
      action: ChardevArguments.readMonitor),
    CommandOption(
      "monitor", argument: "BACKEND", help: "a human monitor (HMP), on one of the backends of -serial"
    ) { (draft, text) throws(OptionProblem) in
      try ChardevArguments.readMonitor(&draft, on: text, .readline)
    },
    CommandOption("qmp", argument: "BACKEND", help: "a QMP monitor, on one of the backends of -serial") {
      (draft, text) throws(OptionProblem) in
      try ChardevArguments.readMonitor(&draft, on: text, .control)
    },
    CommandOption("qmp-pretty", argument: "BACKEND", help: "the same as -qmp, with answers on several lines") {
      (draft, text) throws(OptionProblem) in
      try ChardevArguments.readMonitor(&draft, on: text, .control, pretty: true)
    },
    CommandOption("nographic", help: "no display; serial port and monitor on stdio (accepted: this is the default)") {
      _ in
    },
    CommandOption("display", only: "none", of: .display, help: "no display (accepted: Nestling has none)"),
    CommandOption("vga", only: "none", of: .adapter, help: "no display adapter (accepted: Nestling has none)"),
    CommandOption(
      "audio", "audiodev", argument: "[driver=]none[,id=ID]", help: "no sound (accepted: Nestling has none)"
    ) { (_, text) throws(OptionProblem) in
      let driver = try AudioArguments.parsing(text, impliedName: "driver").driver
      guard driver == "none" else { throw .unknown(.audioDriver, name: driver, known: ["none"]) }
    },
    CommandOption(
      "parallel", only: "none", of: .parallelBackend, help: "no parallel port (accepted: Nestling has none)"),
  ]

  private static let running = [
    CommandOption(
      "name", argument: "[guest=]NAME", help: "the guest's name, for query-name and info name"
    ) { (draft, text) throws(OptionProblem) in
      draft.configuration.name = try NameArguments.parsing(text, impliedName: "guest").name
    },
    CommandOption("S", help: "wait for a monitor's cont before starting the CPUs") {
      $0.configuration.startsPaused = true
    },
    CommandOption("no-reboot", help: "end when the guest resets, instead of restarting it") {
      $0.action.reboot = .shutdown
    },
    CommandOption(
      "action", argument: "reboot=reset|shutdown",
      help: "the effect of a reset by the guest; shutdown is the same as -no-reboot"
    ) { (draft, text) throws(OptionProblem) in
      try draft.action.apply(text)
    },
    CommandOption(
      "d", argument: "ITEM[,...]", help: "log these items (-d help lists them)"
    ) { (draft, text) throws(OptionProblem) in
      if asksHelp(text) { return draft.print(HelpText.logItems) }
      for word in text.split(separator: ",", omittingEmptySubsequences: false) {
        guard let item = MachineConfiguration.LogItem(rawValue: String(word)) else {
          let known = MachineConfiguration.LogItem.allCases.map(\.rawValue)
          throw .unknown(.logItem, name: String(word), known: known)
        }
        draft.configuration.logItems.insert(item)
      }
    },
    CommandOption(
      "D", argument: "FILE", help: "write the log of -d to FILE instead of standard error"
    ) { (draft, text) throws(OptionProblem) in
      draft.configuration.logPath = try notEmpty(text)
    },
    CommandOption(
      "trace", argument: "[enable=]PATTERN[,file=FILE]",
      help: "write the trace events of IOMMUs and hotplug whose names match PATTERN (-trace help lists all)",
      "to standard error or FILE; * stands for any characters"
    ) { (draft, text) throws(OptionProblem) in
      if asksHelp(text) { return draft.print(TraceArguments.eventNames) }
      let arguments = try TraceArguments.parsing(text, impliedName: "enable")
      var trace = draft.configuration.trace ?? TraceConfiguration()
      if let pattern = arguments.enable {
        guard trace.add(matching: pattern) else {
          throw .unknown(.traceEvent, name: pattern, known: TraceConfiguration.names)
        }
      }
      if let path = arguments.file { trace.path = path }
      draft.configuration.trace = trace
    },
    CommandOption(
      "qtest", argument: "BACKEND", help: "a client drives the board by QEMU's qtest protocol, on one of the backends",
      "of -serial",
      action: ChardevArguments.readQTest),
    CommandOption(
      "qtest-log", argument: "FILE|none", help: "write the qtest conversation to FILE instead of standard error"
    ) { (draft, text) throws(OptionProblem) in
      draft.qtestLogSource = draft.source
      draft.qtestLog = text == "none" ? QTestOptions.Log.none : .file(path: try notEmpty(text))
    },
    CommandOption(
      "run-with", argument: "exit-with-parent=on|off", help: "end when the process that started Nestling ends"
    ) { (draft, text) throws(OptionProblem) in
      try draft.runWith.apply(text)
    },
    CommandOption("version", help: "print the version and end") { $0.print(HelpText.version) },
    CommandOption("help", "h", help: "print this help and end") { $0.print(HelpText.options) },
  ]

  /// Throws if two options select different accelerators.
  private static func agree(_ earlier: AcceleratorName?, _ now: AcceleratorName?) throws(OptionProblem) {
    if let earlier, let now, earlier != now { throw .otherAccelerator(earlier.text) }
  }

  static func asksHelp(_ text: String) -> Bool { text == "help" || text == "?" }

  /// Whether the text has the form `TYPE,help`.
  static func asksForProperties(_ text: String) -> Bool {
    text.split(separator: ",").dropFirst().contains { asksHelp(String($0)) }
  }

  private static func notEmpty(_ text: String) throws(OptionProblem) -> String {
    if text.isEmpty { throw .empty }
    return text
  }
}
