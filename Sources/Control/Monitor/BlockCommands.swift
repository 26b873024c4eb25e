import JSON
import Machine

/// Commands that add, remove, resize and list block nodes while the machine runs (qapi/block-core.json).
extension MonitorCommands {
  static let blockCommands: [MonitorCommand] = [
    MonitorCommand(
      "blockdev-add",
      open: [
        "driver": .enumeration("BlockdevDriver", ["file", "raw"]), "node-name": .string, "*read-only": .boolean,
        "*discard": .enumeration("BlockdevDiscardOptions", ["ignore", "unmap"]),
      ]
    ) { (object, target) throws(MonitorError) in
      var node = try node(try JSONProperties.flattened(object))
      node.file = try mapError(
        try target.descriptors.sets.open(node.path, readOnly: node.readOnly), MonitorError.init(descriptor:))
      try target.perform(.addNode(node))
    },
    MonitorCommand("blockdev-del", argument: "node-name") { (name, target) throws(MonitorError) in
      try target.perform(.removeNode(name))
    },
    MonitorCommand("block_resize", ResizeArguments.self) { (arguments, target) throws(MonitorError) in
      try arguments.carryOut(on: target)
    },
    MonitorCommand(
      "query-block",
      answers: .list(
        "BlockInfo",
        [
          "device": .string, "*qdev": .string, "type": .string, "removable": .boolean, "locked": .boolean,
          "*inserted": nodeType, "*io-status": .string,
        ])
    ) { target in
      .array(
        target.blockNodes.flatMap { state in
          state.users.map { user -> JSONValue in
            [
              "io-status": "ok", "device": "", "locked": false, "removable": false, "inserted": describe(state),
              "qdev": .string(user + "/virtio-backend"), "type": "unknown",
            ]
          }
        })
    },
    MonitorCommand("query-named-block-nodes", NodeListArguments.self, answers: .array(nodeType)) {
      (_, target) throws(MonitorError) in .answer(.array(target.blockNodes.map(describe)))
    },
  ]

  /// Makes a node from the arguments of `blockdev-add`.
  /// - Parameter object: The arguments, flattened (`JSONProperties.flattened`).
  private static func node(_ object: JSONObject) throws(MonitorError) -> BlockNode {
    let assignments = try JSONProperties.strict(object, of: BlockdevArguments.self)
    guard case .string(let driver)? = object["driver"] else { throw .generic("Parameter 'driver' is missing") }
    let needed: [(String, Bool)] =
      switch driver {
      case "file": [("filename", object["filename"] == nil)]
      case "raw" where object["file"] == nil:
        [
          ("file", object["file.driver"] == nil && object["file.filename"] == nil),
          ("file.driver", object["file.driver"] == nil), ("file.filename", object["file.filename"] == nil),
        ]
      default: []
      }
    if let missing = needed.first(where: { $0.1 }) { throw .generic("Parameter '\(missing.0)' is missing") }
    if BlockdevArguments.Driver(rawValue: driver) != nil {
      guard case .string(let name)? = object["node-name"] else {
        throw .generic("'node-name' must be specified for the root node")
      }
      if (try? Identifier(text: name)) == nil { throw .generic("Invalid node-name: \(ErrorText.quoted(name))") }
    }
    let arguments = try mapError(try BlockdevArguments(assignments)) { MonitorError.unexpected($0, driver) }
    // The machine looks up the node below when it carries out the request.
    return arguments.node(over: [])
  }

  private static let nodeType = SchemaType.object(
    "BlockDeviceInfo",
    [
      "file": .string, "*node-name": .string, "ro": .boolean, "drv": .string, "backing_file_depth": .integer,
      "encrypted": .boolean, "detect_zeroes": .string, "bps": .integer, "bps_rd": .integer, "bps_wr": .integer,
      "iops": .integer, "iops_rd": .integer, "iops_wr": .integer, "write_threshold": .integer,
      "cache": .object("BlockdevCacheInfo", ["writeback": .boolean, "direct": .boolean, "no-flush": .boolean]),
      "image": .object("ImageInfo", ["filename": .string, "format": .string, "virtual-size": .integer]),
    ])

  /// Returns a node's BlockDeviceInfo. Nestling has no throttling and no backing files.
  private static func describe(_ state: MachineInspection.BlockState) -> JSONValue {
    let node = state.node
    return [
      "iops_rd": 0, "detect_zeroes": "off",
      "image": [
        "virtual-size": JSONValue(state.size ?? 0), "filename": .string(node.path),
        "format": .string(node.driver.rawValue),
      ],
      "iops_wr": 0, "ro": .bool(node.readOnly), "node-name": .string(node.id), "backing_file_depth": 0,
      "drv": .string(node.driver.rawValue), "iops": 0, "bps_wr": 0, "write_threshold": 0, "encrypted": false, "bps": 0,
      "bps_rd": 0, "cache": ["no-flush": false, "direct": false, "writeback": true], "file": .string(node.path),
    ]
  }
}

struct ResizeArguments: CommandArguments {
  /// The name of a drive, which is the name of its node here.
  var device: String?
  var name: String?
  /// In bytes.
  var size: Int64 = 0

  static let fields: [ArgumentField<Self>] = [
    ArgumentField("device", \.device), ArgumentField("node-name", \.name), ArgumentField("size", \.size),
  ]

  func carryOut(on target: any MonitorTarget) throws(MonitorError) {
    let nodes = target.blockNodes.map(\.node.id)
    guard let id = [device, name].compactMap({ $0 }).first(where: nodes.contains) else {
      throw .generic("Cannot find device='\(device ?? "")' nor node-name='\(name ?? "")'")
    }
    guard let size = UInt64(exactly: size) else { throw .generic("Parameter 'size' expects a >0 size") }
    try target.perform(.resizeNode(id, to: size))
  }
}

struct NodeListArguments: CommandArguments {
  /// Leaves out backing nodes, which do not exist here.
  var flat: Bool?

  static let fields: [ArgumentField<Self>] = [ArgumentField("flat", \.flat)]
}

/// `info block`, in QEMU's layout (block/monitor/block-hmp-cmds.c).
enum BlockText {
  static func text(_ words: [String], _ states: [MachineInspection.BlockState]) -> String {
    let all = words.contains("-n")
    let name = words.first { !$0.hasPrefix("-") }
    let shown = states.filter { state in
      if let name { return state.node.id == name }
      return all || !state.users.isEmpty
    }
    return shown.flatMap { state in
      let users: [String?] = all || state.users.isEmpty ? [nil] : state.users
      return users.map { user in text(state, user: user) }
    }.joined(separator: "\n")
  }

  private static func text(_ state: MachineInspection.BlockState, user: String?) -> String {
    let node = state.node
    var text = "\(node.id): \(node.path) (\(node.driver.rawValue)\(node.readOnly ? ", read-only" : ""))\n"
    if let user { text += "    Attached to:      \(user)/virtio-backend\n" }
    return text + "    Cache mode:       writeback\n"
  }
}
