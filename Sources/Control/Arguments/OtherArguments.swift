import Machine

/// What `-action` says.
struct ActionArguments: TypedOptions {
  var reboot = MachineConfiguration.RebootAction.reset

  static let properties: [Property<Self>] = [
    Property("reboot", \.reboot, help: "What the guest's reset does: reset or shutdown"),
    Property(
      "shutdown", settled: "poweroff", because: "a guest that powers off ends Nestling",
      help: "What the guest's power-off does"),
  ]
}

/// What `-name` says.
struct NameArguments: TypedOptions {
  var name: String?

  static let properties: [Property<Self>] = [
    Property("guest", \.name, help: "The guest's name")
  ]
}

/// What `-audio` and `-audiodev` say.
struct AudioArguments: TypedOptions {
  var driver = ""
  var id: Identifier?

  static let properties: [Property<Self>] = [
    Property("driver", \.driver, .notEmpty, help: "none"),
    Property("id", \.id, help: "Name for sound devices, of which there are none"),
  ]
}
