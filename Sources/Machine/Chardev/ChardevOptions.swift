/// The options of a character device (`-chardev`), which describe the host's end. Names and defaults are QEMU's.
public protocol ChardevOptions: QOMOptions {
  /// Whether several frontends share the device; Ctrl-A C switches between them.
  var multiplexed: Bool { get set }
}

/// Every type of character device. A new type is its options, a line here, and the code in `ChardevEndpoint` that opens
/// it.
public enum ChardevTypes {
  public static let all: [any ChardevOptions.Type] = [
    SocketChardevOptions.self,
    StdioChardevOptions.self,
    FileChardevOptions.self,
    NullChardevOptions.self,
  ]

  public static func named(_ name: String) -> (any ChardevOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}

extension ChardevOptions {
  static func multiplexing(_ path: any WritableKeyPath<Self, Bool> & Sendable) -> Property<Self> {
    Property("mux", path, help: "Several frontends share it; Ctrl-A C switches to the next")
  }
}

/// `null`: drops all output and has no input.
public struct NullChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let typeName = "null"
  public static let summary = "Drops all output and has no input"
  public static let properties: [Property<Self>] = [multiplexing(\.multiplexed)]
}

/// `stdio`: Nestling's own standard input and output.
public struct StdioChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let typeName = "stdio"
  public static let summary = "Standard input and output, with the Ctrl-A commands"
  public static let properties: [Property<Self>] = [
    multiplexing(\.multiplexed),
    Property(
      "signal", settled: false, because: "every key goes to the guest; Ctrl-A X ends Nestling",
      help: "Ctrl-C ends Nestling"),
  ]
}

/// `file`: output only.
public struct FileChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false
  public var path = ""
  /// Whether the file keeps its content; otherwise it is truncated first.
  public var append = false

  public init() {}

  public static let typeName = "file"
  public static let summary = "Output into a file"
  public static let properties: [Property<Self>] = [
    Property("path", \.path, help: "File for the output"),
    Property("append", \.append, help: "Append to the file's content"),
    multiplexing(\.multiplexed),
  ]
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "chardev: file: no filename given") { !$0.path.isEmpty }
  ]
}

/// `socket`: a stream socket in the file system or over TCP. A server serves one client after the other.
public struct SocketChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false
  /// The path of a socket in the file system.
  public var path: String?
  /// The address of a TCP socket: IPv4, or `localhost`.
  public var host: String?
  /// The port of a TCP socket.
  public var port: UInt16?
  /// Whether the socket listens instead of connecting.
  public var server = false
  /// Whether the guest starts only after a client has connected. Nil for the default: a server waits.
  public var wait: Bool?
  /// The pause between two tries to connect again, in seconds; 0 not to connect again. Only a device that takes over the
  /// socket connects again.
  public var reconnect: UInt32 = 0

  public init() {}

  public var waits: Bool { server && wait ?? true }

  public static let typeName = "socket"
  public static let summary = "Stream socket, in the file system or TCP"
  public static let properties: [Property<Self>] = [
    // sun_path has 108 bytes, the last of them zero (unix(7)).
    Property("path", \.path, .atMost(107), help: "Path of the socket"),
    Property("host", \.host, help: "IPv4 address, or localhost, of a TCP socket"),
    Property("port", \.port, .within(1...65535), help: "Port of a TCP socket"),
    Property("server", \.server, help: "Listen, instead of connecting"),
    Property("wait", \.wait, help: "The guest starts after a client has connected (default on, server only)"),
    Property("reconnect", \.reconnect, help: "Seconds between tries to connect again (vhost-user devices only)"),
    Property("telnet", settled: false, because: "the telnet protocol is not supported", help: "Speak telnet"),
    multiplexing(\.multiplexed),
  ]

  // qemu_chr_parse_socket (chardev/char-socket.c).
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "None or one of 'path', 'fd' or 'host' option required.") {
      $0.path == nil || $0.host == nil
    },
    PropertyRule(otherwise: "chardev: socket: no host/path/fd given") { $0.path ?? $0.host ?? "" != "" },
    PropertyRule(otherwise: "chardev: socket: no port given") { $0.host == nil || $0.port != nil },
    PropertyRule(otherwise: "port needs host") { $0.port == nil || $0.host != nil },
    PropertyRule(otherwise: "'wait' option is incompatible with socket in client connect mode") {
      $0.wait == nil || $0.server
    },
    PropertyRule(otherwise: "'reconnect' option is incompatible with socket in server listen mode") {
      $0.reconnect == 0 || !$0.server
    },
  ]
}
