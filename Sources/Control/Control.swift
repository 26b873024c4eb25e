import Machine

/// The command line, the monitors (QMP and HMP), and every text that Nestling prints.
public enum Control {
  /// The result of parsing a command line.
  public enum Outcome: Sendable {
    case run(MachineConfiguration)
    /// Print this text, which ends in a newline, on standard output and exit with status 0.
    case print(String)
    /// Print this line, which ends in a newline, on standard error and exit with status 1.
    case fail(String)
  }

  /// Parses a command line. Opens no file.
  /// - Parameter arguments: The words after the program's name.
  public static func parse(_ arguments: [String]) -> Outcome {
    do {
      return try CommandLineReader.read(arguments)
    } catch {
      return .fail(ErrorText.line(for: error))
    }
  }

  /// Parses a command line and carries it out: runs a machine, checks the host, or prints help.
  /// - Returns: The exit status of the process.
  public static func run(_ arguments: [String]) -> Int32 {
    // Without /dev/null there may be no standard error to report this on.
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
      HostProcess.endSoon(status: 1)
      StandardStreams.writeError(line)
      return 1
    case .run(let configuration): return run(configuration)
    }
  }

  private static func run(_ configuration: MachineConfiguration) -> Int32 {
    let notices = RunningNotices()
    var opened: RunningMachine?
    do {
      let machine = try RunningMachine(
        configuration, interpreter: TerminalMultiplexer(), onEnding: { HostProcess.endSoon(status: $0) })
      opened = machine
      machine.control.addListener { notices.write($0) }
      try Monitors.attach(configuration.monitors, to: machine)
      machine.onPassthroughNotice { notices.write($0) }
      let remapping = machine.remapping
      // Write the log before the devices are removed: a removal that hangs must not lose it.
      machine.control.addListener { if case .shutdown = $0 { writeLog(of: remapping, configuration) } }
      let ending = try machine.run()
      notices.finish()
      if let problem = ErrorText.text(for: ending) { StandardStreams.writeError("nestling: \(problem)\n") }
      return ending.exitStatus
    } catch {
      HostProcess.endSoon(status: 1)
      opened?.abandon()
      notices.finish()
      StandardStreams.writeError(ErrorText.line(for: error))
      return 1
    }
  }

  /// Writes the counters that `-d iommu` asks for to the file of `-D`, or to standard error.
  private static func writeLog(of remapping: RemappingInspection, _ configuration: MachineConfiguration) {
    guard configuration.logItems.contains(.iommu) else { return }
    let text = RemappingText.log(of: remapping.units)
    guard let path = configuration.logPath else { return StandardStreams.writeError(text) }
    do {
      try StandardStreams.append(text, to: path)
    } catch {
      StandardStreams.writeError("nestling: -D: \(ErrorText.text(for: error))\n")
    }
  }
}
