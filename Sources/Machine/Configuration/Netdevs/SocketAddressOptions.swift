/// A socket's address in options: QEMU's SocketAddress (qapi/sockets.json), of the types `unix` and `inet`. A part of a
/// netdev type.
public struct SocketAddressOptions: Hashable, Sendable {
  public enum Kind: String, ChoiceValue {
    case unix, inet
  }

  public var kind: Kind?
  /// The path of a Unix socket.
  public var path: String?
  /// An IPv4 address, or `localhost`. Empty for every address, if the socket listens.
  public var host: String?
  public var port: PortNumber?

  public init() {}

  static let properties: [Property<Self>] = [
    Property("type", \.kind, help: "Kind of socket: unix or inet"),
    // sun_path has 108 bytes, the last of them zero (unix(7)).
    Property("path", \.path, .atMost(107), help: "Path of a unix socket"),
    Property("host", \.host, help: "IPv4 address, or localhost, of an inet socket"),
    Property("port", \.port, help: "Port of an inet socket"),
  ]

  /// Returns the rules for an address that is required.
  /// - Parameter name: the address's property: `addr`.
  static func rules<Options: TypedOptions>(
    _ name: String, _ path: any KeyPath<Options, Self> & Sendable
  ) -> [PropertyRule<Options>] {
    func missing(_ member: String, _ isThere: @escaping @Sendable (Self) -> Bool) -> PropertyRule<Options> {
      // QEMU's texts for a missing member (qapi/qobject-input-visitor.c).
      PropertyRule(otherwise: "Parameter '\(member)' is missing") { isThere($0[keyPath: path]) }
    }
    func unexpected(_ member: String, _ isAbsent: @escaping @Sendable (Self) -> Bool) -> PropertyRule<Options> {
      PropertyRule(otherwise: "Parameter '\(member)' is unexpected") { isAbsent($0[keyPath: path]) }
    }
    return [
      missing(name) { $0 != Self() },
      missing(name + ".type") { $0.kind != nil },
      missing(name + ".path") { $0.kind != .unix || $0.path != nil },
      missing(name + ".host") { $0.kind != .inet || $0.host != nil },
      missing(name + ".port") { $0.kind != .inet || $0.port != nil },
      unexpected(name + ".path") { $0.kind == .unix || $0.path == nil },
      unexpected(name + ".host") { $0.kind == .inet || $0.host == nil },
      unexpected(name + ".port") { $0.kind == .inet || $0.port == nil },
    ]
  }

  /// Whether a connection to this host can be made: inet_pton(3) takes an IPv4 address in its canonical form.
  static func isUsable(_ host: String) -> Bool {
    host == "localhost" || (try? IPv4Address(text: host))?.text == host
  }

  /// The address; nil if the rules do not hold.
  var address: SocketAddress? {
    switch kind {
    case .unix: path.map { .unix(path: $0) }
    case .inet:
      if let host, let port { .inet(host: host, port: port.number) } else { nil }
    case nil: nil
    }
  }
}

/// The address of a socket.
public enum SocketAddress: Hashable, Sendable {
  case unix(path: String)
  case inet(host: String, port: UInt16)
}

/// A port of TCP or UDP. In JSON it is a string, as in QEMU.
public struct PortNumber: PropertyValue {
  public let number: UInt16

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    guard let value = NumberText.unsigned(text.utf8) else { throw .notNumber }
    guard let number = UInt16(exactly: value), number > 0 else { throw .outOfRange(lowest: 1, highest: 65535) }
    self.number = number
  }

  public var text: String { String(number) }
}
