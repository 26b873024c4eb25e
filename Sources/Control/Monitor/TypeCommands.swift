import JSON
import Machine

/// Queries about types: machines, device types, object types and their properties (qapi/qom.json, qapi/qdev.json).
extension MonitorCommands {
  static let typeCommands: [MonitorCommand] = [
    MonitorCommand(
      "query-machines",
      answers: .list(
        "MachineInfo",
        [
          "name": .string, "*is-default": .boolean, "cpu-max": .integer, "hotpluggable-cpus": .boolean,
          "numa-mem-supported": .boolean, "deprecated": .boolean, "acpi": .boolean,
        ])
    ) { _ in
      .array(
        MachineConfiguration.MachineType.allCases.map { type in
          [
            "name": .string(type.rawValue), "is-default": true,
            "cpu-max": .integer(Int64(ProcessorTopology.maximumCount)), "hotpluggable-cpus": false,
            "numa-mem-supported": false, "deprecated": false, "acpi": true,
          ]
        })
    },
    MonitorCommand(
      "qom-list-types", TypeListArguments.self,
      answers: .list("ObjectTypeInfo", ["name": .string, "*abstract": .boolean, "*parent": .string])
    ) { (arguments, _) throws(MonitorError) in
      let listed = QOMType.all.filter { type in
        (arguments.abstract ?? false || !type.isAbstract)
          && (arguments.implements.map { type.path.contains($0) } ?? true)
      }
      return .answer(
        .array(
          listed.map { type in
            [
              "name": .string(type.name), "abstract": type.isAbstract ? true : nil,
              "parent": type.parent.map { .string($0) },
            ]
          }))
    },
    MonitorCommand("device-list-properties", argument: "typename", answers: .array(propertyType)) {
      (name, _) throws(MonitorError) in
      if let deviceType = DeviceTypes.named(name) { return properties(of: deviceType) }
      if QOMType.named(name) == nil { throw .deviceNotFound("Device '\(name)' not found") }
      throw .generic("Parameter 'typename' expects a non-abstract device type")
    },
    MonitorCommand("qom-list-properties", argument: "typename", answers: .array(propertyType)) {
      (name, _) throws(MonitorError) in
      if let deviceType = DeviceTypes.named(name) { return properties(of: deviceType) }
      if let objectType = ObjectTypes.named(name) { return properties(of: objectType) }
      if QOMType.named(name) == nil { throw .deviceNotFound("Class '\(name)' not found") }
      return []
    },
  ]

  private static let propertyType = SchemaType.object(
    "ObjectPropertyInfo", ["name": .string, "type": .string, "*description": .string, "*default-value": .any])

  private static func properties(of type: any TypedOptions.Type) -> JSONValue {
    .array(
      type.propertyDescriptions.map { property in
        let text = property.defaultText.flatMap { $0.isEmpty ? nil : $0 }
        return [
          "name": .string(property.name), "type": .string(property.typeName), "description": .string(property.help),
          "default-value": text.map { value($0, property.typeName) },
        ]
      })
  }

  static func value(_ text: String, _ typeName: String) -> JSONValue {
    if typeName == "bool" { return .bool(text == "on") }
    if typeName.hasPrefix("uint"), let number = UInt64(text) { return JSONValue(number) }
    return .string(text)
  }
}

struct TypeListArguments: CommandArguments {
  var implements: String?
  var abstract: Bool?

  static let fields: [ArgumentField<Self>] = [
    ArgumentField("implements", \.implements), ArgumentField("abstract", \.abstract),
  ]
}

/// One type in the part of QEMU's type tree that exists here.
struct QOMType {
  let name: String
  let parent: String?
  var isAbstract = false

  static let all: [QOMType] =
    [
      QOMType(name: "object", parent: nil, isAbstract: true),
      QOMType(name: "machine", parent: "object", isAbstract: true),
      QOMType(name: "device", parent: "object", isAbstract: true),
      QOMType(name: "pci-device", parent: "device", isAbstract: true),
      QOMType(name: "sys-bus-device", parent: "device", isAbstract: true),
      QOMType(name: "isa-device", parent: "device", isAbstract: true),
    ] + MachineConfiguration.MachineType.allCases.map { QOMType(name: $0.rawValue + "-machine", parent: "machine") }
    + DeviceTypes.all.map { type in
      let parent =
        switch type.bus {
        case .pci: "pci-device"
        case .isa: "isa-device"
        case .system: "sys-bus-device"
        }
      return QOMType(name: type.typeName, parent: parent)
    } + ObjectTypes.all.map { QOMType(name: $0.typeName, parent: "object") }

  static func named(_ name: String) -> QOMType? { all.first { $0.name == name } }

  /// The names of the type and all its ancestors.
  var path: [String] { [name] + (parent.flatMap(Self.named)?.path ?? []) }
}
