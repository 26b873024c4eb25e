import Machine

/// The arguments of `-chardev`, `-serial`, `-mon`, `-monitor`, `-qmp` and `-qtest`. If an option itself describes its
/// backend (as in `unix:PATH`) instead of naming a `-chardev`, the backend becomes a separate character device, with
/// the id that QEMU gives it (chardev/char.c, `qemu_chr_parse_compat`).
enum ChardevArguments {
  enum Backend {
    case none
    case named(Identifier)
    case described(any ChardevOptions, withMonitor: Bool)
  }

  static let backends = [
    "none", "null", "stdio", "mon:stdio", "file:PATH", "unix:PATH,server=on,wait=off",
    "tcp:HOST:PORT,server=on,wait=off", "chardev:ID",
  ]

  static func parse(_ text: String) throws(OptionProblem) -> Backend {
    if text == "none" { return .none }
    if let rest = text.after("chardev:") {
      let id = try mapError(try Identifier(text: rest)) {
        OptionProblem.property(.value(name: "chardev", text: rest, $0), owner: nil)
      }
      return .named(id)
    }
    if let rest = text.after("mon:") {
      guard let options = try options(rest) else {
        throw .unknown(.chardevBackend, name: text, known: backends)
      }
      return .described(options, withMonitor: true)
    }
    guard let options = try options(text) else { throw .unknown(.chardevBackend, name: text, known: backends) }
    return .described(options, withMonitor: false)
  }

  private static func options(_ text: String) throws(OptionProblem) -> (any ChardevOptions)? {
    switch text {
    case "null": return NullChardevOptions()
    case "stdio": return StdioChardevOptions()
    default: break
    }
    if let path = text.after("file:") {
      // All of the rest is the path, including commas.
      var options = FileChardevOptions()
      if path.isEmpty { throw .empty }
      options.path = path
      return options
    }
    if let rest = text.after("unix:") { return try SocketChardevOptions.parsing(rest, impliedName: "path") }
    if let rest = text.after("tcp:") {
      // HOST:PORT, then properties. An empty host means every address.
      let parts = rest.split(separator: ",", maxSplits: 1, omittingEmptySubsequences: false)
      guard let colon = parts[0].lastIndex(of: ":") else {
        throw .property(.rule("chardev: socket: no port given"), owner: nil)
      }
      let host = colon == parts[0].startIndex ? "0.0.0.0" : String(parts[0][..<colon])
      let tail = parts.count > 1 ? "," + parts[1] : ""
      return try SocketChardevOptions.parsing(
        "host=" + host + ",port=" + parts[0][parts[0].index(after: colon)...] + tail)
    }
    return nil
  }

  // MARK: The options

  @Sendable
  static func readQTest(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    draft.qtestSource = draft.source
    let backend = try parse(text)
    guard let id = try draft.chardev(backend, label: "qtest") else {
      throw .unknown(.chardevBackend, name: text, known: backends.filter { $0 != "none" })
    }
    draft.qtestDevice = id
    if case .described(_, withMonitor: true) = backend { draft.addMonitor(on: id) }
  }

  @Sendable
  static func readDevice(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    if CommandOptions.asksHelp(text) { return draft.print(HelpText.chardevTypes) }
    let (name, assignments) = try QOMArguments.split(text, impliedName: "backend", of: .chardev)
    guard let chardevType = ChardevTypes.named(name) else {
      throw .unknown(.chardev, name: name, known: ChardevTypes.all.map { $0.typeName })
    }
    if CommandOptions.asksForProperties(text) { return draft.printProperties(of: chardevType) }
    draft.configuration.chardevs.append(try chardevType.checked(assignments))
    draft.chardevSources.append(draft.source)
  }

  @Sendable
  static func readSerial(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    let label = "serial\(draft.serials?.count ?? 0)"
    let backend = try parse(text)
    draft.serialSources.append(draft.source)
    let serial: SerialBackend
    if let id = try draft.chardev(backend, label: label) {
      serial = .chardev(id)
      if case .described(_, withMonitor: true) = backend { draft.addMonitor(on: id) }
    } else {
      serial = .none
    }
    draft.serials = (draft.serials ?? []) + [serial]
  }

  /// `-mon`
  @Sendable
  static func readMonitor(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    draft.hasDefaultMonitor = false
    draft.configuration.monitors.append(try MonitorOptions.parsing(text, impliedName: "chardev"))
    draft.monitorSources.append(draft.source)
  }

  /// `-monitor` and `-qmp`
  static func readMonitor(
    _ draft: inout CommandLineDraft, on text: String, _ mode: MonitorOptions.Mode, pretty: Bool = false
  ) throws(OptionProblem) {
    draft.hasDefaultMonitor = false
    let label = "compat_monitor\(draft.describedMonitors)"
    let backend = try parse(text)
    guard let id = try draft.chardev(backend, label: label) else { return }
    draft.describedMonitors += 1
    draft.addMonitor(on: id, mode, pretty: pretty)
  }
}

extension CommandLineDraft {
  /// Adds the character device of a backend that the option itself describes.
  /// - Returns: The id of the backend's character device; nil for `none`.
  fileprivate mutating func chardev(
    _ backend: ChardevArguments.Backend, label: String
  ) throws(OptionProblem) -> Identifier? {
    switch backend {
    case .none: return nil
    case .named(let id): return id
    case .described(let described, let withMonitor):
      guard let id = try? Identifier(text: label) else { return nil }
      var options = described
      options.id = id
      if withMonitor { options.multiplexed = true }
      configuration.chardevs.append(options)
      chardevSources.append(source)
      return id
    }
  }

  fileprivate mutating func addMonitor(
    on id: Identifier, _ mode: MonitorOptions.Mode = .readline, pretty: Bool = false
  ) {
    var monitor = MonitorOptions()
    monitor.device = id
    monitor.mode = mode
    monitor.pretty = pretty
    configuration.monitors.append(monitor)
    monitorSources.append(source)
  }
}

extension String {
  /// Returns the text after a prefix; nil if the text does not begin with it.
  fileprivate func after(_ prefix: String) -> String? {
    hasPrefix(prefix) ? String(dropFirst(prefix.count)) : nil
  }
}
