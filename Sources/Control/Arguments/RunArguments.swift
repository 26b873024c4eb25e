import Machine

/// The properties of `-action`.
struct ActionArguments: TypedOptions {
  var reboot = MachineConfiguration.RebootAction.reset

  static let properties: [Property<Self>] = [
    Property("reboot", \.reboot, help: "Effect of a reset by the guest: reset or shutdown"),
    Property(
      "shutdown", settled: "poweroff", because: "a guest that powers off ends Nestling",
      help: "Effect of a power-off by the guest"),
  ]
}

/// The properties of `-name`.
struct NameArguments: TypedOptions {
  var name: String?

  static let properties: [Property<Self>] = [
    Property("guest", \.name, help: "The guest's name")
  ]
}

/// The properties of `-audio` and `-audiodev`.
struct AudioArguments: TypedOptions {
  var driver = ""
  var id: Identifier?

  static let properties: [Property<Self>] = [
    Property("driver", \.driver, .notEmpty, help: "none"),
    Property("id", \.id, help: "Name for sound devices, which do not exist here"),
  ]
}

/// The properties of `-run-with`.
struct RunWithArguments: TypedOptions {
  var exitsWithParent = false

  static let properties: [Property<Self>] = [
    Property("exit-with-parent", \.exitsWithParent, help: "End Nestling when the process that started it ends")
  ]
}

/// The properties of `-trace`.
struct TraceArguments: TypedOptions {
  var enable: String?
  var file: String?

  static let properties: [Property<Self>] = [
    Property("enable", \.enable, .notEmpty, help: "Names of events; * stands for any characters"),
    Property("file", \.file, .notEmpty, help: "File to write the events to, instead of standard error"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "the event is missing: PATTERN or enable=PATTERN") { $0.enable != nil }
  ]

  static var eventNames: String { TraceConfiguration.names.joined(separator: "\n") + "\n" }
}
