/// `stream`: Ethernet frames over a stream socket, each after its length. The peer is another Nestling or QEMU, passt,
/// or any other program with this protocol.
public struct StreamNetdevOptions: NetdevOptions, Hashable {
  public var id: Identifier?
  public var address = SocketAddressOptions()
  /// Whether the socket listens, for one client at a time, instead of connecting.
  public var server = false
  /// The time from the loss of a connection to the next attempt, in seconds; nil if not given.
  public var reconnectSeconds: UInt32?
  /// The same time in milliseconds; nil if not given.
  public var reconnectMilliseconds: UInt32?

  public init() {}

  public static let typeName = "stream"
  public static let summary = "Frames over a stream socket, Unix or TCP"
  public static let properties: [Property<Self>] =
    SocketAddressOptions.properties.map { $0.within(\.address, prefix: "addr.") } + [
      Property("server", \.server, help: "Listen, instead of connecting"),
      Property(
        "reconnect", \.reconnectSeconds, help: "Seconds from the loss of a connection to the next attempt; 0 for never"),
      Property("reconnect-ms", \.reconnectMilliseconds, help: "The same time in milliseconds"),
    ]

  // net_init_stream (net/stream.c).
  public static let rules: [PropertyRule<Self>] =
    SocketAddressOptions.rules("addr", \.address) + [
      PropertyRule(otherwise: "addr.host must be an IPv4 address or localhost: host names are not resolved") {
        guard $0.address.kind == .inet, let host = $0.address.host else { return true }
        return SocketAddressOptions.isUsable(host) || $0.server && host.isEmpty
      },
      PropertyRule(otherwise: "'reconnect' and 'reconnect-ms' are mutually exclusive") {
        $0.reconnectSeconds == nil || $0.reconnectMilliseconds == nil
      },
      PropertyRule(otherwise: "'reconnect' option is incompatible with socket in server mode") {
        $0.reconnectSeconds == nil || !$0.server
      },
      PropertyRule(otherwise: "'reconnect-ms' option is incompatible with socket in server mode") {
        $0.reconnectMilliseconds == nil || !$0.server
      },
    ]

  /// The time from the loss of a connection to the next attempt, in nanoseconds; nil for no further attempt.
  var reconnectTime: UInt64? {
    let milliseconds = reconnectMilliseconds.map(UInt64.init) ?? UInt64(reconnectSeconds ?? 0) * 1000
    return milliseconds == 0 ? nil : milliseconds * 1_000_000
  }
}
