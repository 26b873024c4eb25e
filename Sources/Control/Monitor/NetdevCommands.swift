import JSON
import Machine

/// Commands for netdevs and links (qapi/net.json).
extension MonitorCommands {
  static let netdevCommands: [MonitorCommand] = [
    MonitorCommand(
      "netdev_add",
      open: ["type": .enumeration("NetClientDriver", NetdevTypes.all.map { $0.typeName }), "id": .string]
    ) { (object, target) throws(MonitorError) in
      try NetdevArguments.add(try NetdevArguments.read(object), to: target)
    },
    MonitorCommand("netdev_del", argument: "id") { (id, target) throws(MonitorError) in
      try target.perform(.removeNetdev(id))
    },
    MonitorCommand("set_link", LinkArguments.self) { (arguments, target) throws(MonitorError) in
      try target.perform(.setLink(arguments.name, up: arguments.isUp))
    },
  ]
}

struct LinkArguments: CommandArguments {
  var name = ""
  var isUp = false

  static let fields: [ArgumentField<Self>] = [ArgumentField("name", \.name), ArgumentField("up", \.isUp)]
}

/// The arguments of `netdev_add`, in QMP and HMP, and of `-netdev` in JSON.
enum NetdevArguments {
  static func add(_ options: any NetdevOptions, to target: any MonitorTarget) throws(MonitorError) {
    var options = options
    var files = options.descriptors
    for index in files.indices { files[index].file = target.descriptors[files[index].text] }
    options.descriptors = files
    try target.perform(.addNetdev(options))
    for file in files { target.descriptors.remove(file.text) }
  }

  /// Reads the members of a Netdev, some of which are objects: `{"addr": {"type": "unix"}}`.
  static func read(_ object: JSONObject) throws(MonitorError) -> any NetdevOptions {
    var rest = try JSONProperties.flattened(object)
    guard let value = rest["type"] else { throw .generic("Parameter 'type' is missing") }
    guard case .string(let name) = value else { throw .invalidType("type", expected: "string") }
    let netdevType = try type(named: name)
    rest["type"] = nil
    if rest["id"] == nil { throw .generic("Parameter 'id' is missing") }
    let lists = try JSONProperties.takeLists(from: &rest, of: netdevType)
    return try read(netdevType, lists + (try JSONProperties.strict(rest, of: netdevType)))
  }

  /// Parses an option string, as HMP's `netdev_add` takes it.
  static func read(option text: String) throws(MonitorError) -> any NetdevOptions {
    let assignments = try MonitorError.assignments(text, impliedName: "type")
    guard assignments.contains(where: { $0.name == "id" }) else { throw .generic("Parameter 'id' is missing") }
    guard let name = assignments.last(where: { $0.name == "type" })?.value else {
      throw .generic("Parameter 'type' is missing")
    }
    return try read(try type(named: name), assignments.filter { $0.name != "type" })
  }

  private static func type(named name: String) throws(MonitorError) -> any NetdevOptions.Type {
    guard let netdevType = NetdevTypes.named(name) else {
      throw .generic("Parameter 'type' does not accept value \(ErrorText.quoted(name))")
    }
    return netdevType
  }

  private static func read(
    _ netdevType: any NetdevOptions.Type, _ assignments: [PropertyAssignment]
  ) throws(MonitorError) -> any NetdevOptions {
    try mapError(try netdevType.init(assignments)) { MonitorError.unexpected($0, netdevType.typeName) }
  }
}

/// `info network`, in QEMU's layout (net/net.c, hmp_info_network). A link that is down has `link=down`, which QEMU does
/// not show.
enum NetworkText {
  static func text(_ cards: [MachineInspection.NetworkCard], free: [MachineInspection.NetdevState]) -> String {
    free.map(text).joined()
      + cards.map { card in
        "\(card.name): index=0,type=nic,model=\(card.typeName),macaddr=\(card.address)\(link(card.isLinkUp))\n"
          + (card.netdev.map { " \\ " + text($0) } ?? "")
      }.joined()
  }

  private static func text(_ netdev: MachineInspection.NetdevState) -> String {
    "\(netdev.id): index=0,type=\(netdev.typeName),\(text(netdev.status))\(link(netdev.isLinkUp))\n"
  }

  private static func link(_ isUp: Bool) -> String { isUp ? "" : ",link=down" }

  private static func text(_ status: NetdevStatus) -> String {
    switch status {
    case .listening: "listening"
    case .datagrams(.unix(let local), .unix(let remote)): "udp=\(local):\(remote)"
    case .datagrams(let local, let remote): "udp=\(endpoint(local))/\(endpoint(remote))"
    case .connecting: "connecting"
    case .connected(.unix(let path)): "unix:\(path)"
    case .connected(.inet(let host, let port)): "tcp:\(host):\(port)"
    case .failed(let error): "error: \(ErrorText.text(for: error))"
    case .interface(let name): "ifname=\(name),script=no,downscript=no"
    case .vhostUser(let chardev): "vhost-user0 to \(chardev.text)"
    case .process(let number): "stream,connected to pid \(number)"
    case .ended(let failure): "error: \(ErrorText.text(for: failure))"
    case .disconnected: "disconnected"
    case .closed: "removed"
    }
  }

  private static func endpoint(_ address: SocketAddress) -> String {
    switch address {
    case .unix(let path): path
    case .inet(let host, let port): "\(host):\(port)"
    }
  }
}

extension SocketAddress {
  /// The address as a SocketAddress of QEMU.
  var json: JSONValue {
    switch self {
    case .unix(let path): ["type": "unix", "path": .string(path)]
    case .inet(let host, let port): ["type": "inet", "host": .string(host), "port": .string(String(port))]
    }
  }

  static let schema = SchemaType.object(
    "SocketAddress",
    [
      "type": .enumeration("SocketAddressType", SocketAddressOptions.Kind.allCases.map(\.rawValue)),
      "*path": .string, "*host": .string, "*port": .string,
    ])
}
