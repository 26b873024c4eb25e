import JSON
import Machine
import PCI

/// Queries about the machine's parts (qapi/machine.json, qapi/pci.json, qapi/char.json).
extension MonitorCommands {
  static let boardCommands: [MonitorCommand] = [
    MonitorCommand("query-kvm", answers: .object("KvmInfo", ["enabled": .boolean, "present": .boolean])) { target in
      let isKVM = if case .kvm = target.configuration.accelerator { true } else { false }
      return ["enabled": .bool(isKVM), "present": .bool(isKVM)]
    },
    MonitorCommand("query-target", answers: .object("TargetInfo", ["arch": .string])) { _ in ["arch": "x86_64"] },
    MonitorCommand(
      "query-cpus-fast",
      answers: .list(
        "CpuInfoFast",
        ["cpu-index": .integer, "qom-path": .string, "thread-id": .integer, "props": processorPlace, "target": .string])
    ) { target in .array(processors(target)) },
    // There are no iothreads: each queue has its own worker.
    MonitorCommand("query-iothreads", answers: .array(.any)) { _ in [] },
    MonitorCommand("query-memory-size-summary", answers: .object("MemoryInfo", ["base-memory": .integer])) { target in
      ["base-memory": JSONValue(target.configuration.memory.size)]
    },
    MonitorCommand(
      "query-memdev",
      answers: .list(
        "Memdev",
        [
          "*id": .string, "size": .integer, "merge": .boolean, "dump": .boolean, "prealloc": .boolean,
          "share": .boolean, "*reserve": .boolean, "host-nodes": .array(.integer),
          "policy": .enumeration("HostMemPolicy", ["default"]),
        ])
    ) { target in
      let backend = MemoryBackend(of: target.configuration)
      return [
        [
          "id": .string(backend.id), "size": JSONValue(backend.size), "merge": false, "dump": false, "prealloc": false,
          "share": .bool(backend.isShared), "reserve": .bool(backend.isReserved), "host-nodes": [], "policy": "default",
        ]
      ]
    },
    MonitorCommand(
      "query-current-machine", answers: .object("CurrentMachineParams", ["wakeup-suspend-support": .boolean])
    ) { _ in ["wakeup-suspend-support": false] },
    MonitorCommand(
      "query-chardev",
      answers: .list("ChardevInfo", ["frontend-open": .boolean, "filename": .string, "label": .string])
    ) { target in
      .array(
        target.chardevs.map { device in
          [
            "frontend-open": .bool(device.hasFrontend), "filename": .string(device.name), "label": .string(device.id),
          ]
        })
    },
    MonitorCommand("query-pci", answers: .list("PciInfo", ["bus": .integer, "devices": .array(functionType)])) {
      target in [["bus": 0, "devices": .array(target.functions.map(function))]]
    },
    MonitorCommand("x-query-iommu", answers: .object("HumanReadableText", ["human-readable-text": .string])) { target in
      ["human-readable-text": .string(target.remappingText())]
    },
  ]

  private static let processorPlace = SchemaType.object(
    "CpuInstanceProperties", ["socket-id": .integer, "core-id": .integer, "thread-id": .integer])

  private static func processors(_ target: any MonitorTarget) -> [JSONValue] {
    let threads = target.processorThreads
    let topology = target.configuration.processors
    let threadsPerSocket = max(1, topology.coresPerSocket * topology.threadsPerCore)
    return (0..<topology.count).map { index in
      let within = index % threadsPerSocket
      return [
        "cpu-index": .integer(Int64(index)), "qom-path": .string("/machine/cpu[\(index)]"),
        "thread-id": .integer(Int64(index < threads.count ? threads[index] : 0)),
        "props": [
          "socket-id": .integer(Int64(index / threadsPerSocket)),
          "core-id": .integer(Int64(within / max(1, topology.threadsPerCore))),
          "thread-id": .integer(Int64(within % max(1, topology.threadsPerCore))),
        ],
        "target": "x86_64",
      ]
    }
  }

  private static let functionType = SchemaType.object(
    "PciDeviceInfo",
    [
      "*pci_bridge": bridgeType, "bus": .integer, "slot": .integer, "function": .integer,
      "class_info": .object("PciDeviceClass", ["*desc": .string, "class": .integer]),
      "id": .object(
        "PciDeviceId", ["device": .integer, "vendor": .integer, "*subsystem": .integer, "*subsystem-vendor": .integer]),
      "*irq": .integer, "irq_pin": .integer, "qdev_id": .string,
      "regions": .list(
        "PciMemoryRegion",
        [
          "bar": .integer, "type": .string, "address": .integer, "size": .integer, "*prefetch": .boolean,
          "*mem_type_64": .boolean,
        ]),
    ])

  private static let rangeType = SchemaType.object("PciMemoryRange", ["base": .integer, "limit": .integer])

  /// The members of `devices` have the type of those on bus 0, but the schema cannot express a recursive type.
  private static let bridgeType = SchemaType.object(
    "PciBridgeInfo",
    [
      "bus": .object(
        "PciBusInfo",
        [
          "number": .integer, "secondary": .integer, "subordinate": .integer, "io_range": rangeType,
          "memory_range": rangeType, "prefetchable_range": rangeType,
        ]), "*devices": .array(.any),
    ])

  private static func bridge(_ bridge: MachineInspection.Bridge) -> JSONValue {
    func range(_ window: BridgeHeader.Window) -> JSONValue {
      [
        "base": .integer(Int64(bitPattern: window.base)), "limit": .integer(Int64(bitPattern: window.limit)),
      ]
    }
    let header = bridge.header
    return [
      "bus": [
        "number": .integer(Int64(header.primaryBus)), "secondary": .integer(Int64(header.secondaryBus)),
        "subordinate": .integer(Int64(header.subordinateBus)), "io_range": range(header.io),
        "memory_range": range(header.memory), "prefetchable_range": range(header.prefetchable),
      ],
      // QEMU leaves out `devices` until software has numbered the bus.
      "devices": header.secondaryBus != 0 ? .array(bridge.functions.map(function)) : nil,
    ]
  }

  private static func function(_ function: MachineInspection.Function) -> JSONValue {
    let description = function.description
    return [
      "bus": .integer(Int64(function.address.bus)), "slot": .integer(Int64(function.address.device)),
      "function": .integer(Int64(function.address.function)),
      "class_info": [
        "class": .integer(Int64(description.classCode >> 8)),
        "desc": PCIClassName.of(description.classCode).map { .string($0) },
      ],
      "id": [
        "device": .integer(Int64(description.deviceID)), "vendor": .integer(Int64(description.vendorID)),
        "subsystem": .integer(Int64(description.subsystemID)),
        "subsystem-vendor": .integer(Int64(description.subsystemVendorID)),
      ],
      "irq": description.interruptPin > 0 ? .integer(Int64(function.interruptLine)) : nil,
      "irq_pin": .integer(Int64(description.interruptPin)), "qdev_id": .string(function.id ?? ""),
      "regions": .array(function.regions.map(region)), "pci_bridge": function.bridge.map(bridge),
    ]
  }

  private static func region(_ region: MachineInspection.Function.Region) -> JSONValue {
    let register = region.register
    let isMemory = register.space != .io
    return [
      "bar": .integer(Int64(register.index)), "type": isMemory ? "memory" : "io",
      // QEMU shows -1 for a BAR without an address.
      "address": region.address == 0 ? -1 : .integer(Int64(bitPattern: region.address)),
      "size": .integer(Int64(clamping: register.size)),
      "prefetch": isMemory ? .bool(register.prefetchable) : nil,
      "mem_type_64": isMemory ? .bool(register.space == .memory64) : nil,
    ]
  }
}

/// Guest RAM as QEMU describes it, with the id of its memory backend, or `pc.ram` if it has none. Core dumps do not
/// include RAM, and its pages are not merged with others (madvise(2)).
struct MemoryBackend {
  let id: String
  let size: UInt64
  let isShared: Bool
  /// Whether RAM is reserved at the start. This is so for huge pages, which come from the host's pool.
  let isReserved: Bool

  init(of configuration: MachineConfiguration) {
    let object = configuration.objects.first { $0 is MemoryBackendMemfdOptions }
    id = object?.id?.text ?? "pc.ram"
    size = configuration.memory.size
    isReserved = configuration.memory.hugePages != nil
    isShared = configuration.sharesMemory
  }

  /// `info memdev`, in QEMU's layout (hw/core/machine-hmp-cmds.c).
  var text: String {
    "memory backend: \(id)\n  size:  \(size)\n  merge: false\n  dump: false\n  prealloc: false\n"
      + "  share: \(isShared)\n  reserve: \(isReserved)\n  policy: default\n  host nodes: \n\n"
  }
}

/// QEMU's names of the PCI classes that devices here have (hw/pci/pci.c).
enum PCIClassName {
  static func of(_ classCode: UInt32) -> String? {
    switch classCode >> 8 {
    case 0x0100: "SCSI controller"
    case 0x0180: "Mass storage controller"
    case 0x0200: "Ethernet controller"
    case 0x0600: "Host bridge"
    case 0x0601: "ISA bridge"
    case 0x0604: "PCI bridge"
    default: nil
    }
  }
}
