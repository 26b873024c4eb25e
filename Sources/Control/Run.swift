import Machine

extension Control {
  /// Does what a command line asks for.
  /// - Returns: the process's exit status.
  public static func run(_ arguments: [String]) -> Int32 {
    // There may be nowhere to say it.
    guard HostProcess.prepare() else { return 1 }
    if let word = arguments.first, word.drop(while: { $0 == "-" }) == HostCheckText.command {
      let (text, status) = HostCheckText.run(Array(arguments.dropFirst()))
      StandardStreams.writeOutput(text)
      return status
    }
    switch parse(arguments) {
    case .print(let text):
      StandardStreams.writeOutput(text)
      return 0
    case .fail(let line):
      StandardStreams.writeError(line)
      return 1
    case .run(let configuration): return run(configuration)
    }
  }

  private static func run(_ configuration: MachineConfiguration) -> Int32 {
    let notices = RunningNotices()
    do {
      let machine = try RunningMachine(configuration, interpreter: TerminalMultiplexer())
      machine.control.addListener { notices.tell($0) }
      try Monitors.attach(configuration.monitors, to: machine)
      machine.onPassthroughNotice { notices.tell($0) }
      let ending = try machine.run()
      notices.finish()
      writeLog(of: machine, configuration)
      switch ending {
      case .shutdown, .quit: return 0
      case .debugExit(let status): return status
      case .crashed(let what):
        StandardStreams.writeError("nestling: \(what)\n")
        return 1
      }
    } catch {
      notices.finish()
      StandardStreams.writeError(ErrorText.line(for: error))
      return 1
    }
  }

  /// What `-d` asks for when Nestling ends.
  private static func writeLog(of machine: RunningMachine, _ configuration: MachineConfiguration) {
    guard configuration.logItems.contains(.iommu) else { return }
    let text = RemappingText.log(of: machine.remapping.units)
    guard let path = configuration.logPath else { return StandardStreams.writeError(text) }
    do {
      try StandardStreams.append(text, to: path)
    } catch {
      StandardStreams.writeError("nestling: -D: \(error)\n")
    }
  }
}

extension ErrorText {
  static func line(for error: StartError) -> String {
    if case .configuration(let error) = error { return line(for: CommandLineError.configuration(error)) }
    return line([], error.description)
  }
}
