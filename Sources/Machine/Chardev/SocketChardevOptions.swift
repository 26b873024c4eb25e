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
  ]
}
