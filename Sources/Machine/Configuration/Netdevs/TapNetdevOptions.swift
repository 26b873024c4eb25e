import Linux

/// `tap`: a tap interface of the host, with one file for each queue. Nestling opens `/dev/net/tun`, or takes open
/// files.
public struct TapNetdevOptions: NetdevOptions, Hashable {
  public var id: Identifier?
  /// The interface's name; nil for the first free one of the form `tap0`.
  public var interface: String?
  /// An open file of an interface.
  public var file: DescriptorReference?
  /// The open files of an interface, one for each queue.
  public var files: DescriptorReferences?
  /// The number of queues; nil for one.
  public var queueCount: UInt16?

  public init() {}

  private static let noScripts = "Nestling runs no scripts: set up the interface before the start, and give no"
  private static let noVhost = "vhost-net is not supported yet"

  public static let typeName = "tap"
  public static let summary = "Tap interface of the host"
  public static let properties: [Property<Self>] = [
    Property("ifname", \.interface, .atMost(TapInterface.longestName), help: "Name of the interface; default: tap%d"),
    Property("fd", \.file, help: "An open tap file: the number of an inherited descriptor, or a name (getfd)"),
    Property("fds", \.files, help: "Open tap files, one for each queue, with ':' between them"),
    Property("queues", \.queueCount, .within(1...256), help: "Queues of the interface (default 1)"),
    Property("script", settled: "no", because: noScripts, help: "Script that sets up the interface (always no)"),
    Property("downscript", settled: "no", because: noScripts, help: "Script that takes it down (always no)"),
    Property(
      "vnet_hdr", settled: true, because: "the interface needs virtio's header", help: "Offloads (always on)"),
    Property("vhost", settled: false, because: noVhost, help: "Move packets in the host's kernel (always off)"),
    Property(
      "sndbuf", settled: ByteCount(0), because: "the interface has no limit", help: "Limit of queued bytes (always 0)"),
  ]

  // net_init_tap (net/tap.c).
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "ifname=, queues= and fds= are invalid with fd=") {
      $0.file == nil || $0.interface == nil && $0.queueCount == nil && $0.files == nil
    },
    PropertyRule(otherwise: "ifname= and queues= are invalid with fds=") {
      $0.files == nil || $0.interface == nil && $0.queueCount == nil
    },
  ]

  public var descriptors: [DescriptorReference] {
    get { files?.references ?? file.map { [$0] } ?? [] }
    set {
      if files != nil { files?.references = newValue } else { file = newValue.first }
    }
  }
}

/// Several open files, with `:` between their names.
public struct DescriptorReferences: PropertyValue {
  /// At least one.
  public var references: [DescriptorReference]

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    references = []
    for name in text.split(separator: ":", omittingEmptySubsequences: false) {
      references.append(try DescriptorReference(text: String(name)))
    }
  }

  public var text: String { references.map(\.text).joined(separator: ":") }
}
