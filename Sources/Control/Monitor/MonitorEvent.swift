import JSON
import Machine

/// The events that QMP tells (qapi/run-state.json, qapi/qdev.json, qapi/acpi.json), and one of ours.
enum MonitorEventName: String, CaseIterable {
  /// The guest has reported how it got on with a device (ACPI 6.5, 6.3.5, _OST).
  case deviceStatus = "ACPI_DEVICE_OST"
  case deviceDeleted = "DEVICE_DELETED"
  case unplugRefused = "DEVICE_UNPLUG_GUEST_ERROR"
  /// The client has not read, and so lost events that would stand here.
  case eventsDropped = "X_EVENTS_DROPPED"
  case powerDown = "POWERDOWN"
  case reset = "RESET"
  case resume = "RESUME"
  case shutdown = "SHUTDOWN"
  case stop = "STOP"

  /// What comes with it.
  var members: [SchemaMember] {
    switch self {
    case .deviceStatus: [SchemaMember("info", Self.statusType)]
    case .deviceDeleted, .unplugRefused:
      [SchemaMember("device", .string, optional: true), SchemaMember("path", .string)]
    case .eventsDropped: [SchemaMember("count", .integer)]
    case .powerDown, .resume, .stop: []
    case .reset, .shutdown: [SchemaMember("guest", .boolean), SchemaMember("reason", MachineCause.reasons)]
    }
  }

  /// QEMU's kinds of slots are DIMM and CPU. A slot of PCI is an extension of ours.
  private static let statusType = SchemaType.object(
    "ACPIOSTInfo",
    [
      SchemaMember("device", .string, optional: true), SchemaMember("slot", .string),
      SchemaMember("slot-type", .enumeration("ACPISlotType", [pciSlot])), SchemaMember("source", .integer),
      SchemaMember("status", .integer),
    ])
  fileprivate static let pciSlot = "PCI"

  /// - Parameter time: nanoseconds since 1970.
  func message(_ data: JSONValue? = nil, at time: UInt64) -> JSONValue {
    var event: JSONObject = [
      "timestamp": [
        "seconds": .integer(Int64(clamping: time / 1_000_000_000)),
        "microseconds": .integer(Int64(time / 1000 % 1_000_000)),
      ],
      "event": .string(rawValue),
    ]
    event["data"] = data
    return .object(event)
  }
}

extension MachineNotice {
  /// The event that it is, with a time.
  /// - Parameter time: nanoseconds since 1970.
  /// - Returns: nil for what QMP does not tell.
  func event(at time: UInt64) -> JSONValue? {
    let kind: MonitorEventName
    var data: JSONValue?
    switch self {
    case .tripleFault: return nil
    case .reset(let cause): (kind, data) = (.reset, cause.data)
    case .shutdown(let cause): (kind, data) = (.shutdown, cause.data)
    case .powerDown: kind = .powerDown
    case .paused: kind = .stop
    case .resumed: kind = .resume
    case .deviceDeleted(let id, let path): (kind, data) = (.deviceDeleted, Self.device(id, path))
    case .unplugRefused(let id, let path): (kind, data) = (.unplugRefused, Self.device(id, path))
    case .deviceStatus(let id, let slot, let source, let status):
      var information: JSONObject = [:]
      information["device"] = id.map { .string($0.text) }
      information["slot"] = .string(slot)
      information["slot-type"] = .string(MonitorEventName.pciSlot)
      information["source"] = .integer(source)
      information["status"] = .integer(status)
      (kind, data) = (.deviceStatus, ["info": .object(information)])
    }
    return kind.message(data, at: time)
  }

  private static func device(_ id: Identifier?, _ path: String) -> JSONValue {
    var device: JSONObject = ["path": .string(path)]
    device["device"] = id.map { .string($0.text) }
    return .object(device)
  }
}

extension MachineCause {
  /// ShutdownCause, as far as there are such causes here.
  static let reasons = SchemaType.enumeration(
    "ShutdownCause",
    ["host-qmp-quit", "host-qmp-system-reset", "host-signal", "guest-shutdown", "guest-reset", "guest-panic"])

  fileprivate var data: JSONValue {
    let (guest, reason): (Bool, String) =
      switch self {
      case .guestShutdown: (true, "guest-shutdown")
      case .guestReset: (true, "guest-reset")
      case .guestCrash: (true, "guest-panic")
      // A person at the terminal ends it as the command does.
      case .monitorQuit, .terminal: (false, "host-qmp-quit")
      case .monitorReset: (false, "host-qmp-system-reset")
      case .signal: (false, "host-signal")
      }
    return ["guest": .bool(guest), "reason": .string(reason)]
  }
}
