import Linux
import VhostUser

/// `vhost-user`: another process serves the device's queues, and connects over a socket chardev (NetdevVhostUserOptions,
/// qapi/net.json).
public struct VhostUserNetdevOptions: NetdevOptions, Hashable {
  public var id: Identifier?
  public var chardev: Identifier?
  /// The number of queue pairs.
  public var pairCount: UInt16 = 1

  public init() {}

  public static let typeName = "vhost-user"
  public static let summary = "Another process that serves the queues (vhost-user)"
  public static let needsSharedMemory = true

  public static let properties: [Property<Self>] = [
    Property("chardev", \.chardev, help: "ID of the socket chardev of the back end"),
    Property("queues", \.pairCount, .within(1...pairLimit), help: "Queue pairs (default 1)"),
    Property(
      "vhostforce", settled: true, because: "the back end also serves a driver without MSI-X",
      help: "Serve a driver without MSI-X, too (always on)"),
  ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "chardev is missing: name the -chardev socket of the back end") { $0.chardev != nil }
  ]

  /// A session has at most 256 virtqueues.
  private static let pairLimit: UInt16 = 128
}

extension VhostUserNetdevOptions: NetdevOpening {
  func open(on host: NetdevHost) throws(NetdevOpenError) -> any NetdevBackend {
    guard let id, let name = chardev else { throw .chardev(.missingID) }
    guard let regions = MemoryRegion.regions(of: host.memory) else { throw .vhostUser(.privateMemory) }
    guard let chardev = host.chardevs?.all.first(where: { $0.options.id == name }) else {
      throw .chardev(.notFound(name))
    }
    let (dialer, loop) = try mapError(try chardev.handOver()) { (error: Chardev.HandOverError) -> NetdevOpenError in
      switch error {
      case .chardev(let problem): .chardev(problem)
      case .system(let error): .system(error)
      }
    }
    let network = VhostUserNetwork(
      id: id, chardev: chardev, pairs: Int(pairCount), regions: regions, dialer: dialer, loop: loop, host: host)
    network.connect()
    return network
  }
}
