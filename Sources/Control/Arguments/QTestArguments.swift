import Machine

/// What `-qtest-log` says.
enum QTestArguments {
  static func log(_ text: String) throws(OptionProblem) -> QTestOptions.Log {
    if text.isEmpty { throw .empty }
    return text == "none" ? .none : .file(path: text)
  }
}

/// What `-run-with` says.
struct RunWithArguments: TypedOptions {
  var exitsWithParent = false

  static let properties: [Property<Self>] = [
    Property("exit-with-parent", \.exitsWithParent, help: "Nestling is killed when the process that started it ends")
  ]
}
