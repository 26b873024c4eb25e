import Machine

/// What `-trace` says.
struct TraceArguments: TypedOptions {
  var enable: String?
  var file: String?

  static let properties: [Property<Self>] = [
    Property("enable", \.enable, .notEmpty, help: "Events by name, * for any characters"),
    Property("file", \.file, .notEmpty, help: "File for the events, instead of standard error"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "no event is named: PATTERN or enable=PATTERN") { $0.enable != nil }
  ]

  static var eventNames: String { TraceConfiguration.names.joined(separator: "\n") + "\n" }
}
