import Devices
import Hardware
import Linux
import PCI
import VTd

/// The trace of the machine.
typealias MachineTrace = EventTrace<MachineTraceEvent>

extension MachineTrace {
  static var off: MachineTrace { MachineTrace([], sink: nil) }

  func record(_ event: MachineTraceEvent, _ device: Device, _ more: @autoclosure () -> [TraceArgument] = []) {
    record(event, [.word("device", device.name)] + more())
  }

  func recordAdmission(_ device: Device) {
    let port = device.place?.port.map { [TraceArgument.word("port", $0.description)] } ?? []
    record(.admitted, device, [.word("type", device.typeName)] + port)
  }

  /// Runs `body`, and records its duration as an event of a device. Records nothing if `body` throws.
  func timing<Value, Failure: Error>(
    _ event: MachineTraceEvent, _ device: Device, _ body: () throws(Failure) -> Value
  ) throws(Failure) -> Value {
    guard isOn(event) else { return try body() }
    let start = Clock.monotonic()
    let value = try body()
    record(event, device, [.number("ns", Clock.monotonic() &- start)])
    return value
  }
}

// MARK: Slots

extension MachineTrace {
  func record(_ announcement: ACPIHotplug.Announcement) {
    switch announcement {
    case .up(let slot, let value): record(.appearanceRead, [.number("bsel", slot), .flag("val", value)])
    case .down(let slot, let value): record(.removalRead, [.number("bsel", slot), .flag("val", value)])
    }
  }

  func recordEject(_ slot: Int) { record(.slotEjected, [.number("bsel", slot)]) }

  func recordReport(_ slot: Int, source: UInt32, status: UInt32) {
    record(.statusReported, [.number("bsel", slot), .hex("source", source), .hex("status", status)])
  }

  /// - Parameter port: the address of the slot's port.
  func record(_ change: SlotChange, below port: RequesterID) {
    let (before, after) = (change.before, change.after)
    if before.control != after.control {
      record(
        .slotControlWritten,
        [
          .word("port", port.description), .flag("pds", after.isPresent),
          .word("pic", "\(Self.indicator(before.powerIndicator))->\(Self.indicator(after.powerIndicator))"),
          .word("aic", "\(Self.indicator(before.attentionIndicator))->\(Self.indicator(after.attentionIndicator))"),
          .word("power", "\(before.isPowerControllerOff ? "off" : "on")->\(after.isPowerControllerOff ? "off" : "on")"),
        ])
    }
    if change.hasButtonPressed || change.hasPresenceChanged || change.hasLinkChanged {
      record(
        .slotEventSet,
        [
          .word("port", port.description), .flag("pds", after.isPresent), .flag("button", change.hasButtonPressed),
          .flag("presence", change.hasPresenceChanged), .flag("link", change.hasLinkChanged),
        ])
    }
  }

  /// Names the value of an indicator field as QEMU does.
  private static func indicator(_ value: UInt16) -> String {
    switch value {
    case 1: "on"
    case 2: "blink"
    case 3: "off"
    default: "reserved"
    }
  }
}
