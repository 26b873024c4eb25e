import Hardware
import Machine

/// The error of a command as QMP reports it: a class and a text (qapi/error.json).
struct MonitorError: Error, Hashable {
  enum Class: String {
    case genericError = "GenericError"
    case commandNotFound = "CommandNotFound"
    case deviceNotFound = "DeviceNotFound"
  }

  var errorClass = Class.genericError
  let text: String

  static func generic(_ text: String) -> Self { Self(text: text) }
  static func commandNotFound(_ text: String) -> Self { Self(errorClass: .commandNotFound, text: text) }
  static func deviceNotFound(_ text: String) -> Self { Self(errorClass: .deviceNotFound, text: text) }
}

/// Errors of requests to the machine, in QEMU's classes and texts (qapi/qmp/qerror.h, system/qdev-monitor.c,
/// hw/pci/pci.c).
extension MonitorError {
  init(_ error: RequestError) {
    self =
      switch error {
      case .ended: .generic("The machine ends")
      case .needsReset: .generic("Resetting the Virtual Machine is required")
      case .notPluggable: .generic("Parameter 'driver' expects a pluggable device type")
      case .noSuchBus(let name): .generic("Bus \(ErrorText.quoted(name)) not found")
      case .wrongBus(let typeName, let bus): .generic("Device '\(typeName)' can't go on \(bus.rawValue) bus")
      case .noHotplug(let bus): .generic("Bus '\(bus)' does not support hotplugging")
      case .alreadyLeaving(let name):
        .generic("Device \(name) is already in the process of unplug")
      case .guestBusy: .generic("Hot-unplug failed: guest is busy (power indicator blinking)")
      case .noSuchDevice(let name): .deviceNotFound("Device \(ErrorText.quoted(name)) not found")
      case .property(let typeName, let error): .generic(Self.text(error, typeName))
      case .refused(let typeName, let problem): Self(problem, typeName)
      case .failed(.file(_, let error)) where !error.operand.isEmpty:
        .generic("Could not open \(ErrorText.quoted(error.operand)): \(ErrorText.reason(of: error))")
      case .failed(.netdev(_, _, let error)): .generic(ErrorText.text(for: error))
      case .failed(let error): .generic(ErrorText.text(for: error))
      case .node(.duplicateID(let id)): .generic("Duplicate nodes with node-name='\(id)'")
      case .node(.unknownUnderlying(let name, _)):
        .generic("Cannot find device=\(ErrorText.quoted(name)) nor node-name=\(ErrorText.quoted(name))")
      case .node(let problem): .generic(ErrorText.text(for: problem))
      case .backend(.noSuchNode(let id)):
        .generic("Failed to find node with node-name=\(ErrorText.quoted(id))")
      case .backend(.nodeInUse(let id, .device)): .generic("Node \(id) is in use")
      case .backend(.nodeInUse(let id, .node)): .generic("Block device \(id) is in use")
      case .backend(.duplicateObject(let id)):
        .generic("attempt to add duplicate property '\(id)' to object (type 'container')")
      case .backend(.noSuchObject(let id)): .generic("object '\(id)' not found")
      case .backend(.objectInUse(let id)): .generic("object '\(id)' is in use, can not be deleted")
      case .backend(.duplicateNetdev(let id)): .generic("Duplicate ID '\(id)'")
      case .backend(.noSuchNetdev(let name)): .deviceNotFound("Device \(ErrorText.quoted(name)) not found")
      case .readOnlyNode: .generic("Image is read-only")
      case .notResized(let error):
        // `resize` fails for block devices (block/file-posix.c, raw_co_truncate).
        error.cause == .blockDevice
          ? .generic("Cannot grow device files") : .generic("Failed to resize file: \(ErrorText.reason(of: error))")
      case .noDescriptor(let name):
        .generic("File descriptor named \(ErrorText.quoted(name)) has not been found")
      }
  }

  static func text(_ error: PropertyError, _ typeName: String) -> String {
    switch error {
    case .unknown(let name, _): return "Property '\(typeName).\(ErrorText.shortened(name))' not found"
    case .value(let name, let text, let problem):
      switch problem {
      case .notBoolean: return "Parameter '\(name)' expects 'on' or 'off'"
      case .notNumber: return "Parameter '\(name)' expects integer"
      case .notSize: return "Parameter '\(name)' expects size"
      case .notIdentifier: return "Parameter '\(name)' expects an identifier"
      case .notMACAddress:
        return "Property '\(owner(typeName)).\(name)' doesn't take value \(ErrorText.quoted(text))"
      case .notPCIAddress: return "Property '\(typeName).\(name)' doesn't take value \(ErrorText.quoted(text))"
      case .notOneOf: return "Parameter '\(name)' does not accept value \(ErrorText.quoted(text))"
      case .outOfRange, .notPowerOfTwo, .tooLong, .empty, .refused, .notIPv4Address, .notIPv4Network, .notHostForward:
        break
      }
    case .contradiction, .rule, .unit: break
    }
    return ErrorText.text(for: error, owner: typeName)
  }

  private init(_ problem: DeviceProblem, _ typeName: String) {
    self =
      switch problem {
      case .duplicateID(let id): .generic("Duplicate device ID '\(id)'")
      case .unknownNode(let use, _):
        .generic("Property '\(Self.owner(typeName)).\(use.property)' can't find value \(ErrorText.quoted(use.id))")
      case .nodeInUse(let use, .device):
        .generic("Drive \(ErrorText.quoted(use.id)) is already in use by another device")
      case .unknownObject(let use, _): .deviceNotFound("Device \(ErrorText.quoted(use.id.text)) not found")
      case .wrongObject(let use, _):
        .generic(
          "Invalid parameter type for '\(use.property)', expected: "
            + (use.typeNames.count == 1 ? use.typeNames[0] : use.property + "-backend"))
      case .unknownNetdev(let use, _):
        .generic("Property '\(Self.owner(typeName)).\(use.property)' can't find value \(ErrorText.quoted(use.id.text))")
      case .netdevInUse(let use, _):
        .generic("Property '\(Self.owner(typeName)).\(use.property)' can't take value '\(use.id)', it's in use")
      case .addressTaken(let address, let owner):
        .generic(
          "PCI: slot \(address.device) function \(address.function) not available for \(typeName), in use by "
            + Self.text(owner))
      case .functionZeroFound(let address, let owner):
        .generic(
          "PCI: slot \(address.device) function 0 already occupied by \(Self.typeName(owner)), new func "
            + "\(typeName) cannot be exposed to guest.")
      case .noFreeAddress: .generic("PCI: no slot/function available for \(typeName), all in use or reserved")
      default: .generic(ErrorText.text(for: problem))
      }
  }

  /// Returns the device that has the property in QEMU, where a virtio device on PCI consists of two devices.
  private static func owner(_ typeName: String) -> String {
    typeName.hasPrefix("virtio-") && typeName.hasSuffix("-pci") ? typeName.dropLast(3) + "device" : typeName
  }

  private static func typeName(_ owner: AddressOwner) -> String {
    switch owner {
    case .hostBridge: "mch"
    case .isaBridge: "ICH9-LPC"
    case .device(let typeName, _): typeName
    }
  }

  private static func text(_ owner: AddressOwner) -> String {
    switch owner {
    case .hostBridge: "mch,id=(null)"
    case .isaBridge: "ICH9-LPC,id=(null)"
    case .device(let typeName, let id): "\(typeName),id=\(id?.text ?? "(null)")"
    }
  }
}

extension MonitorTarget {
  /// Sends a request to the machine and waits until it is carried out.
  func perform(_ request: MachineRequest) throws(MonitorError) {
    let files = files(removedBy: request)
    defer { withExtendedLifetime(files) {} }
    try mapError(try control.perform(request), MonitorError.init(_:))
  }
}

extension MonitorError {
  /// Parses an option string of an HMP command.
  static func assignments(_ text: String, impliedName: String) throws(Self) -> [PropertyAssignment] {
    try mapError(try OptionString.assignments(text, impliedName: impliedName)) { (problem: OptionProblem) in
      MonitorError.generic(ErrorText.text(for: problem))
    }
  }
}
