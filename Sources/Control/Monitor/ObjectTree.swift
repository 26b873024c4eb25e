import JSON
import Machine

/// The part of QEMU's object tree (QOM) that exists here: the machine's devices and the objects of `-object`.
struct ObjectTree {
  /// One object: its type, its properties and its children.
  struct Node {
    let path: String
    let typeName: String
    var properties: [PropertyState] = []
    /// Names and types.
    var children: [(name: String, typeName: String)] = []
  }

  private let nodes: [Node]

  init(_ target: any MonitorTarget) {
    let devices = target.devices
    let machine = target.configuration.machineType.rawValue + "-machine"
    func children(under folder: String) -> [(name: String, typeName: String)] {
      devices.filter { $0.path.hasPrefix(folder) }.map { (String($0.path.dropFirst(folder.count)), $0.typeName) }
    }
    var nodes = [
      Node(path: "/", typeName: "container", children: [("machine", machine), ("objects", "container")]),
      Node(
        path: "/machine", typeName: machine, children: [("peripheral", "container"), ("peripheral-anon", "container")]),
    ]
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
      nodes.append(Node(path: folder, typeName: "container", children: children(under: folder + "/")))
    }
    var objects = Node(path: "/objects", typeName: "container")
    for device in devices {
      nodes.append(Node(path: device.path, typeName: device.typeName, properties: device.options.propertyStates))
    }
    for object in target.objects {
      guard let id = object.id?.text else { continue }
      let typeName = type(of: object).typeName
      objects.children.append((id, typeName))
      nodes.append(Node(path: "/objects/" + id, typeName: typeName, properties: object.propertyStates))
    }
    self.nodes = nodes + [objects]
  }

  /// - Parameter path: A whole path, or the end of exactly one object's path.
  func node(at path: String) throws(MonitorError) -> Node {
    if path.hasPrefix("/") {
      let whole = path.count > 1 && path.hasSuffix("/") ? String(path.dropLast()) : path
      if let node = nodes.first(where: { $0.path == whole }) { return node }
    } else if !path.isEmpty {
      let found = nodes.filter { $0.path.hasSuffix("/" + path) }
      if found.count > 1 { throw .generic("Path \(ErrorText.quoted(path)) does not uniquely identify an object") }
      if let node = found.first { return node }
    }
    throw .deviceNotFound("Device \(ErrorText.quoted(path)) not found")
  }
}

/// `info qom-tree`, in QEMU's layout (qom/qom-hmp-cmds.c).
extension ObjectTree {
  func text(from path: String) -> String {
    do throws(MonitorError) {
      return text(of: try node(at: path), depth: 0)
    } catch {
      return error.errorClass == .deviceNotFound
        ? "Path \(ErrorText.quoted(path)) could not be resolved.\n"
        : "Warning: Path \(ErrorText.quoted(path)) is ambiguous.\n"
    }
  }

  private func text(of node: Node, depth: Int) -> String {
    let name = node.path.split(separator: "/").last.map(String.init) ?? ""
    let line = String(repeating: "  ", count: depth) + "/\(name) (\(node.typeName))\n"
    let folder = node.path == "/" ? "" : node.path
    let children = node.children.sorted { $0.name < $1.name }.compactMap { child in
      nodes.first { $0.path == folder + "/" + child.name }
    }
    return line + children.map { text(of: $0, depth: depth + 1) }.joined()
  }
}

/// Commands that query the tree (qapi/qom.json).
extension MonitorCommands {
  static let treeCommands: [MonitorCommand] = [
    MonitorCommand(
      "qom-list", argument: "path", answers: .list("ObjectPropertyName", ["name": .string, "type": .string])
    ) { (path, target) throws(MonitorError) in
      let node = try ObjectTree(target).node(at: path)
      var list: [JSONValue] = [["name": "type", "type": "string"]]
      for property in node.properties {
        list.append(["name": .string(property.name), "type": .string(property.typeName)])
      }
      for child in node.children {
        list.append(["name": .string(child.name), "type": .string("child<\(child.typeName)>")])
      }
      return .array(list)
    },
    MonitorCommand("qom-get", ObjectPropertyArguments.self, answers: .any) {
      (arguments, target) throws(MonitorError) in
      let tree = ObjectTree(target)
      let node = try tree.node(at: arguments.path)
      if arguments.property == "type" { return .answer(.string(node.typeName)) }
      if let child = node.children.first(where: { $0.name == arguments.property }) {
        return .answer(.string((node.path == "/" ? "" : node.path) + "/" + child.name))
      }
      guard let property = node.properties.first(where: { $0.name == arguments.property }) else {
        throw .generic("Property '\(node.typeName).\(ErrorText.shortened(arguments.property))' not found")
      }
      return .answer(value(property.text ?? "", property.typeName))
    },
  ]
}

struct ObjectPropertyArguments: CommandArguments {
  var path = ""
  var property = ""

  static let fields: [ArgumentField<Self>] = [ArgumentField("path", \.path), ArgumentField("property", \.property)]
}

/// `info qtree`, in QEMU's layout (system/qdev-monitor.c).
enum DeviceTreeText {
  static func text(_ devices: [Device]) -> String {
    let buses: [(name: String, type: String, bus: DeviceBus)] = [
      ("main-system-bus", "System", .system), ("pcie.0", "PCIE", .pci), ("isa.0", "ISA", .isa),
    ]
    return buses.map { name, type, bus in
      "bus: \(name)\n  type \(type)\n"
        + devices.filter { Swift.type(of: $0.options).bus == bus }.map(text).joined()
    }.joined()
  }

  private static func text(_ device: Device) -> String {
    var text = "  dev: \(device.typeName), id \"\(device.id?.text ?? "")\"\n"
    for property in device.options.propertyStates where property.name != "id" {
      text += "    \(property.name) = \(value(property))\n"
    }
    if let address = device.address { text += "    addr \(address)\n" }
    return text
  }

  private static func value(_ property: PropertyState) -> String {
    let text = property.text ?? ""
    if property.typeName == "bool" { return text == "on" ? "true" : "false" }
    if property.typeName.hasPrefix("uint"), let number = UInt64(text) {
      return "\(text) (0x\(String(number, radix: 16)))"
    }
    return property.typeName == "str" ? "\"\(text)\"" : text
  }
}
