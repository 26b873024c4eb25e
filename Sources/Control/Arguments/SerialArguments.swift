import Machine

/// What `-serial` says (QEMU's chardev/char.c, `qemu_chr_parse_compat`).
enum SerialArguments {
  static let backends = ["none", "null", "stdio", "mon:stdio", "file:PATH", "unix:PATH,server=on,wait=off"]

  static func parse(_ text: String) throws(OptionProblem) -> SerialBackend {
    switch text {
    case "none": return .none
    case "null": return .null
    // The Ctrl-A commands are there in both.
    case "stdio", "mon:stdio": return .stdio
    default: break
    }
    if text.hasPrefix("file:") {
      // The whole rest is the path, commas and all.
      let path = String(text.dropFirst(5))
      if path.isEmpty { throw .empty }
      return .file(path: path)
    }
    if text.hasPrefix("unix:") {
      let socket = try UnixSocketArguments.parsing(String(text.dropFirst(5)), impliedName: "path")
      return .unixSocket(path: socket.path, server: socket.server, wait: socket.server && socket.wait ?? true)
    }
    throw .unknown(.serialBackend, name: text, known: backends)
  }
}

private struct UnixSocketArguments: TypedOptions {
  var path = ""
  var server = false
  var wait: Bool?

  static let properties: [Property<Self>] = [
    // sun_path has 108 bytes, the last of them zero (unix(7)).
    Property("path", \.path, .atMost(107), help: "Path of the socket"),
    Property("server", \.server, help: "Listen, instead of connecting"),
    Property("wait", \.wait, help: "The guest starts when somebody has connected (default on, server only)"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "the path is missing") { !$0.path.isEmpty },
    PropertyRule(otherwise: "wait goes with server=on") { $0.wait == nil || $0.server },
  ]
}
