import Machine

/// The argument of `-qtest-log`.
enum QTestArguments {
  static func log(_ text: String) throws(OptionProblem) -> QTestOptions.Log {
    if text.isEmpty { throw .empty }
    return text == "none" ? .none : .file(path: text)
  }
}

/// The properties of `-run-with`.
struct RunWithArguments: TypedOptions {
  var exitsWithParent = false

  static let properties: [Property<Self>] = [
    Property("exit-with-parent", \.exitsWithParent, help: "End Nestling when the process that started it ends")
  ]
}
