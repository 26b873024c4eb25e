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
  /// Whether the host's kernel moves the packets (vhost-net); nil if `vhostforce` or an open file of vhost-net decides.
  public var vhost: Bool?
  public var vhostForce: Bool?
  /// An open file of vhost-net.
  public var vhostFile: DescriptorReference?
  /// Open files of vhost-net, one for each queue.
  public var vhostFiles: DescriptorReferences?

  public init() {}

  private static let noScripts = "Nestling runs no scripts: set up the interface before the start, and give no"

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
    Property("vhost", \.vhost, help: "Move packets in the host's kernel, by /dev/vhost-net (default off)"),
    Property("vhostforce", \.vhostForce, help: "As vhost, also for a driver without MSI-X, as vhost does anyway"),
    Property("vhostfd", \.vhostFile, help: "An open file of vhost-net: an inherited descriptor, or a name (getfd)"),
    Property("vhostfds", \.vhostFiles, help: "Open files of vhost-net, one for each queue, with ':' between them"),
    Property(
      "sndbuf", settled: ByteCount(0), because: "the interface has no limit", help: "Limit of queued bytes (always 0)"),
  ]

  // net_init_tap (net/tap.c).
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "ifname=, queues=, fds= and vhostfds= are invalid with fd=") {
      $0.file == nil
        || $0.interface == nil && $0.queueCount == nil && $0.files == nil && $0.vhostFiles == nil
    },
    PropertyRule(otherwise: "ifname=, queues= and vhostfd= are invalid with fds=") {
      $0.files == nil || $0.interface == nil && $0.queueCount == nil && $0.vhostFile == nil
    },
    PropertyRule(otherwise: "vhostfds= is invalid if fds= wasn't specified") {
      $0.vhostFiles == nil || $0.files != nil
    },
    PropertyRule(otherwise: "vhostfd(s)= is not valid without vhost") {
      $0.usesVhost || $0.vhostDescriptors.isEmpty
    },
  ]

  var usesVhost: Bool { vhost ?? (vhostForce == true || !vhostDescriptors.isEmpty) }

  var tapDescriptors: [DescriptorReference] { files?.references ?? file.map { [$0] } ?? [] }
  var vhostDescriptors: [DescriptorReference] { vhostFiles?.references ?? vhostFile.map { [$0] } ?? [] }

  public var descriptors: [DescriptorReference] {
    get { tapDescriptors + vhostDescriptors }
    set {
      let taps = Array(newValue.prefix(tapDescriptors.count))
      let vhosts = Array(newValue.dropFirst(taps.count))
      if files != nil { files?.references = taps } else { file = taps.first }
      if vhostFiles != nil { vhostFiles?.references = vhosts } else { vhostFile = vhosts.first }
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
