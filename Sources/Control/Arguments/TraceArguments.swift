import Machine

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
