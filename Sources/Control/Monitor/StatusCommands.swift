import JSON
import Machine

/// Commands that query and change the run state (qapi/run-state.json, qapi/misc.json, qapi/control.json).
extension MonitorCommands {
  static let statusCommands: [MonitorCommand] = [
    MonitorCommand(
      "query-version",
      answers: .object(
        "VersionInfo",
        [
          "qemu": .object("VersionTriple", ["major": .integer, "minor": .integer, "micro": .integer]),
          "package": .string,
        ])
    ) { _ in MonitorVersion.value },
    MonitorCommand(
      "query-status",
      answers: .object(
        "StatusInfo", ["status": .enumeration("RunState", MachineStatus.all.map(\.text)), "running": .boolean])
    ) { target in
      let status = target.control.status
      return ["status": .string(status.text), "running": .bool(status == .running)]
    },
    MonitorCommand("query-name", answers: .object("NameInfo", ["*name": .string])) { target in
      target.configuration.name.map { ["name": .string($0)] } ?? [:]
    },
    MonitorCommand("stop", NoArguments.self) { (_, target) throws(MonitorError) in try target.perform(.pause) },
    MonitorCommand("cont", NoArguments.self) { (_, target) throws(MonitorError) in try target.perform(.resume) },
    MonitorCommand("set-action", ActionChoices.self) { (arguments, target) throws(MonitorError) in
      try arguments.carryOut(on: target)
    },
    MonitorCommand("system_reset", afterwards: { $0.control.requestReset() }),
    MonitorCommand("system_powerdown", afterwards: { $0.control.requestPowerDown() }),
    MonitorCommand("quit", afterwards: { $0.control.requestQuit(.monitorQuit) }),
  ]
}

extension MachineStatus {
  static let all: [MachineStatus] = [.prelaunch, .running, .paused, .internalError, .shutdown]

  /// QEMU's name of the state.
  var text: String {
    switch self {
    case .prelaunch: "prelaunch"
    case .running: "running"
    case .paused: "paused"
    case .internalError: "internal-error"
    case .shutdown: "shutdown"
    }
  }
}

/// The version that QMP reports: `qemu` is the version of QEMU whose QMP the commands here follow, and `package` is
/// Nestling's version.
enum MonitorVersion {
  static let level = (major: Int64(10), minor: Int64(0), micro: Int64(0))

  static let value: JSONValue = [
    "qemu": ["major": .integer(level.major), "minor": .integer(level.minor), "micro": .integer(level.micro)],
    "package": .string("nestling-" + HelpText.versionNumber),
  ]
}

/// The arguments of `set-action` (qapi/run-state.json). A guest's power-off always ends Nestling. No device reports
/// guest panics, and there is no watchdog.
struct ActionChoices: CommandArguments {
  var reboot: String?
  var shutdown: String?
  var panic: String?
  var watchdog: String?

  static let fields: [ArgumentField<Self>] = [
    ArgumentField("reboot", \.reboot, of: "RebootAction", ["reset", "shutdown"]),
    ArgumentField("shutdown", \.shutdown, of: "ShutdownAction", ["poweroff", "pause"]),
    ArgumentField("panic", \.panic, of: "PanicAction", ["pause", "shutdown", "exit-failure", "none"]),
    ArgumentField(
      "watchdog", \.watchdog, of: "WatchdogAction",
      ["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"]),
  ]

  /// Applies all arguments, or none if one is refused.
  func carryOut(on target: any MonitorTarget) throws(MonitorError) {
    if shutdown == "pause" {
      throw .generic("Parameter 'shutdown' cannot be 'pause': a guest that powers off ends Nestling")
    }
    if panic != nil { throw .generic("Parameter 'panic' cannot be set: no device reports a panic of the guest") }
    if watchdog != nil { throw .generic("Parameter 'watchdog' cannot be set: there is no watchdog device") }
    guard let reboot, let action = MachineConfiguration.RebootAction(rawValue: reboot) else { return }
    try target.perform(.setRebootAction(action))
  }
}
