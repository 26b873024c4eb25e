import Machine

/// One command of the human monitor (HMP), as data.
struct HumanCommand: Sendable {
  let names: [String]
  /// The parameters, for help.
  let parameters: String
  let help: String
  let run: @Sendable (_ words: [String], any MonitorTarget) -> HumanCommands.Answer

  init(
    _ names: String..., parameters: String = "", help: String,
    _ run: @escaping @Sendable (_ words: [String], any MonitorTarget) -> HumanCommands.Answer
  ) {
    self.names = names
    self.parameters = parameters
    self.help = help
    self.run = run
  }
}

enum HumanCommands {
  struct Answer {
    var text = ""
    /// The action to run after the text has been sent.
    var afterwards: (@Sendable () -> Void)?
  }

  static let all: [HumanCommand] = [
    HumanCommand("help", "?", parameters: "[cmd]", help: "show the help") { (words, _) in
      Answer(text: help(words.first))
    },
    HumanCommand("info", parameters: "[subcommand]", help: "show various information about the system state") {
      (words, target) in Answer(text: info(words, target))
    },
    HumanCommand("stop", "s", help: "stop emulation") { (_, target) in
      answer { () throws(MonitorError) in try target.perform(.pause) }
    },
    HumanCommand("cont", "c", help: "resume emulation") { (_, target) in
      answer { () throws(MonitorError) in try target.perform(.resume) }
    },
    HumanCommand(
      "device_add", parameters: "driver[,prop=value][,...]", help: "add device, like -device on the command line"
    ) {
      (words, target) in
      if let text = words.first, CommandOptions.asksHelp(text) { return Answer(text: HelpText.deviceTypes) }
      return answer { () throws(MonitorError) in
        try DeviceArguments.add(try DeviceArguments.read(option: words.first ?? ""), to: target)
      }
    },
    HumanCommand("device_del", parameters: "device", help: "remove device") { (words, target) in
      named(words, "device_del") { (name) throws(MonitorError) in
        try target.perform(.removeDevice(name, isSurprise: false))
      }
    },
    HumanCommand("object_add", parameters: "[qom-type=]type,id=str[,prop=value][,...]", help: "create QOM object") {
      (words, target) in
      named(words, "object_add") { (text) throws(MonitorError) in
        try ObjectArguments.add(try ObjectArguments.read(option: text), to: target)
      }
    },
    HumanCommand("object_del", parameters: "id", help: "destroy QOM object") { (words, target) in
      named(words, "object_del") { (name) throws(MonitorError) in try ObjectArguments.remove(name, from: target) }
    },
    HumanCommand(
      "netdev_add",
      parameters: "[" + NetdevTypes.all.map { $0.typeName }.joined(separator: "|") + "],id=str[,prop=value][,...]",
      help: "add host network device"
    ) { (words, target) in
      named(words, "netdev_add") { (text) throws(MonitorError) in
        try NetdevArguments.add(try NetdevArguments.read(option: text), to: target)
      }
    },
    HumanCommand("netdev_del", parameters: "id", help: "remove host network device") { (words, target) in
      named(words, "netdev_del") { (name) throws(MonitorError) in try target.perform(.removeNetdev(name)) }
    },
    HumanCommand("set_link", parameters: "name on|off", help: "change the link status of a network adapter") {
      (words, target) in
      guard words.count > 1, words[1] == "on" || words[1] == "off" else {
        return Answer(text: "Expected 'on' or 'off'\nTry \"help set_link\" for more information\n")
      }
      return answer { () throws(MonitorError) in try target.perform(.setLink(words[0], up: words[1] == "on")) }
    },
    HumanCommand("block_resize", parameters: "device size", help: "resize a block image") { (words, target) in
      // A size without a unit is in MiB.
      guard words.count > 1, let last = words[1].utf8.last,
        let size = try? ByteCount(text: words[1] + ((0x30...0x39).contains(last) ? "M" : ""))
      else {
        return Answer(
          text: "block_resize: a device and a size expected\nTry \"help block_resize\" for more information\n")
      }
      return answer { () throws(MonitorError) in
        try ResizeArguments(device: words[0], size: Int64(clamping: size.bytes)).carryOut(on: target)
      }
    },
    HumanCommand("chardev-add", parameters: "args", help: "add chardev") { (words, target) in
      named(words, "chardev-add") { (text) throws(MonitorError) in
        let (id, options) = try ChardevTypeArguments.read(option: text)
        try ChardevTypeArguments.add(options, id, to: target)
      }
    },
    HumanCommand("chardev-remove", parameters: "id", help: "remove chardev") { (words, target) in
      named(words, "chardev-remove") { (name) throws(MonitorError) in
        try ChardevTypeArguments.remove(name, from: target)
      }
    },
    HumanCommand(
      "getfd", parameters: "getfd name", help: "receive a file descriptor via SCM rights and assign it a name"
    ) { (words, target) in
      named(words, "getfd") { (name) throws(MonitorError) in try DescriptorArguments.name(name, on: target) }
    },
    HumanCommand(
      "closefd", parameters: "closefd name", help: "close a file descriptor previously passed via SCM rights"
    ) { (words, target) in
      named(words, "closefd") { (name) throws(MonitorError) in try DescriptorArguments.close(name, on: target) }
    },
    HumanCommand(
      "exit_times", parameters: "on|off", help: "measure, from now on, how long exits keep each CPU out of the guest"
    ) { (words, target) in
      guard words == ["on"] || words == ["off"] else { return Answer(text: "exit_times: on or off expected\n") }
      target.measureExits(words == ["on"])
      return Answer()
    },
    HumanCommand("system_reset", help: "reset the system") { (_, target) in
      Answer { target.control.requestReset() }
    },
    HumanCommand("system_powerdown", help: "send system power down event") { (_, target) in
      Answer { target.control.requestPowerDown() }
    },
    HumanCommand("quit", "q", help: "quit the emulator") { (_, target) in
      Answer { target.control.requestQuit(.monitorQuit) }
    },
  ]

  static func run(_ line: String, on target: any MonitorTarget) -> Answer {
    let words = line.split { $0 == " " || $0 == "\t" || $0.isNewline }.map(String.init)
    guard let name = words.first else { return Answer() }
    guard let command = all.first(where: { $0.names.contains(name) }) else {
      return Answer(text: "unknown command: \(ErrorText.quoted(name))\n")
    }
    if words.count > 1, command.parameters.isEmpty {
      return Answer(text: "\(name): extraneous characters at the end of line\n")
    }
    return command.run(Array(words.dropFirst()), target)
  }

  /// Carries out a command that takes one name.
  private static func named(
    _ words: [String], _ command: String, _ body: (String) throws(MonitorError) -> Void
  ) -> Answer {
    guard let name = words.first else {
      return Answer(text: "\(command): string expected\nTry \"help \(command)\" for more information\n")
    }
    return answer { () throws(MonitorError) in try body(name) }
  }

  /// Carries out a command that prints only errors, in the form of QEMU's `hmp_handle_error`.
  private static func answer(_ body: () throws(MonitorError) -> Void) -> Answer {
    do throws(MonitorError) {
      try body()
      return Answer()
    } catch {
      return Answer(text: "Error: \(error.text)\n")
    }
  }

  private static func help(_ name: String?) -> String {
    if name == "info" { return infoHelp }
    let listed = all.filter { command in name.map { command.names.contains($0) } ?? true }
    return listed.map { line($0.names.joined(separator: "|"), $0.parameters, $0.help) }.joined()
  }

  static func line(_ names: String, _ parameters: String, _ help: String) -> String {
    names + (parameters.isEmpty ? "" : " " + parameters) + " -- " + help + "\n"
  }
}

extension HumanCommands.Answer {
  fileprivate init(_ afterwards: @escaping @Sendable () -> Void) { self.afterwards = afterwards }
}
