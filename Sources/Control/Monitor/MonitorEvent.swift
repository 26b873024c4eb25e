import JSON
import Machine

/// The events of QMP (qapi/run-state.json, qapi/qdev.json, qapi/net.json, qapi/acpi.json), and Nestling's
/// X_EVENTS_DROPPED.
enum MonitorEventName: String, CaseIterable {
  /// The guest has reported the result of a plug or an unplug (_OST, section 6.3.5 of ACPI 6.5).
  case deviceStatus = "ACPI_DEVICE_OST"
  case deviceDeleted = "DEVICE_DELETED"
  case unplugRefused = "DEVICE_UNPLUG_GUEST_ERROR"
  /// Events are missing at this place in the output: they were dropped because the client read too slowly.
  case eventsDropped = "X_EVENTS_DROPPED"
  case streamConnected = "NETDEV_STREAM_CONNECTED"
  case streamDisconnected = "NETDEV_STREAM_DISCONNECTED"
  case vhostUserConnected = "NETDEV_VHOST_USER_CONNECTED"
  case vhostUserDisconnected = "NETDEV_VHOST_USER_DISCONNECTED"
  case powerDown = "POWERDOWN"
  case reset = "RESET"
  case resume = "RESUME"
  case shutdown = "SHUTDOWN"
  case stop = "STOP"

  /// The members of the event's data.
  var members: SchemaMembers {
    switch self {
    case .deviceStatus: ["info": Self.statusType]
    case .deviceDeleted, .unplugRefused:
      ["*device": .string, "path": .string]
    case .eventsDropped: ["count": .integer]
    case .streamConnected: ["netdev-id": .string, "addr": SocketAddress.schema]
    case .streamDisconnected, .vhostUserDisconnected: ["netdev-id": .string]
    case .vhostUserConnected: ["netdev-id": .string, "chardev-id": .string]
    case .powerDown, .resume, .stop: [:]
    case .reset, .shutdown: ["guest": .boolean, "reason": MachineCause.reasons]
    }
  }

  /// QEMU's slot types are DIMM and CPU. The slot type PCI is Nestling's extension.
  private static let statusType = SchemaType.object(
    "ACPIOSTInfo",
    [
      "*device": .string, "slot": .string, "slot-type": .enumeration("ACPISlotType", [pciSlot]), "source": .integer,
      "status": .integer,
    ])
  fileprivate static let pciSlot = "PCI"

  /// Returns the event as a QMP message.
  /// - Parameter time: Nanoseconds since 1970.
  func message(_ data: JSONValue? = nil, at time: UInt64) -> JSONValue {
    [
      "timestamp": [
        "seconds": .integer(Int64(clamping: time / 1_000_000_000)),
        "microseconds": .integer(Int64(time / 1000 % 1_000_000)),
      ],
      "event": .string(rawValue), "data": data,
    ]
  }
}

extension MachineNotice {
  /// Returns the notice as a QMP event.
  /// - Parameter time: Nanoseconds since 1970.
  /// - Returns: Nil if QMP has no event for the notice.
  func event(at time: UInt64) -> JSONValue? {
    let name: MonitorEventName
    var data: JSONValue?
    switch self {
    case .tripleFault, .vhostRefused, .netdevProgramEnded: return nil
    case .reset(let cause): (name, data) = (.reset, cause.data)
    case .shutdown(let cause): (name, data) = (.shutdown, cause.data)
    case .powerDown: name = .powerDown
    case .paused: name = .stop
    case .resumed: name = .resume
    case .streamConnected(let id, let address):
      (name, data) = (.streamConnected, ["netdev-id": .string(id.text), "addr": address.json])
    case .streamDisconnected(let id): (name, data) = (.streamDisconnected, ["netdev-id": .string(id.text)])
    case .vhostUserConnected(let id, let chardev):
      (name, data) = (.vhostUserConnected, ["netdev-id": .string(id.text), "chardev-id": .string(chardev.text)])
    case .vhostUserDisconnected(let id): (name, data) = (.vhostUserDisconnected, ["netdev-id": .string(id.text)])
    case .deviceDeleted(let id, let path): (name, data) = (.deviceDeleted, Self.device(id, path))
    case .unplugRefused(let id, let path): (name, data) = (.unplugRefused, Self.device(id, path))
    case .deviceStatus(let id, let slot, let source, let status):
      let information: JSONValue = [
        "device": id.map { .string($0.text) }, "slot": .string(slot), "slot-type": .string(MonitorEventName.pciSlot),
        "source": .integer(source), "status": .integer(status),
      ]
      (name, data) = (.deviceStatus, ["info": information])
    }
    return name.message(data, at: time)
  }

  private static func device(_ id: Identifier?, _ path: String) -> JSONValue {
    ["path": .string(path), "device": id.map { .string($0.text) }]
  }
}

extension MachineCause {
  /// The values of QEMU's ShutdownCause that can occur here.
  static let reasons = SchemaType.enumeration(
    "ShutdownCause",
    ["host-qmp-quit", "host-qmp-system-reset", "host-signal", "guest-shutdown", "guest-reset", "guest-panic"])

  fileprivate var data: JSONValue {
    let (guest, reason): (Bool, String) =
      switch self {
      case .guestShutdown: (true, "guest-shutdown")
      case .guestReset: (true, "guest-reset")
      case .guestCrash: (true, "guest-panic")
      // Ctrl-A X has the cause of the command `quit`, as in QEMU.
      case .monitorQuit, .terminal: (false, "host-qmp-quit")
      case .monitorReset: (false, "host-qmp-system-reset")
      case .signal: (false, "host-signal")
      }
    return ["guest": .bool(guest), "reason": .string(reason)]
  }
}
