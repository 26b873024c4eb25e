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
