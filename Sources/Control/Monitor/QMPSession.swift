import JSON

/// One client's conversation in QMP (docs/interop/qmp-spec.rst): bytes in, bytes out. It knows of no socket and no
/// thread; whoever has those tells it what came, and sends what it says.
package struct QMPSession {
  /// What is to be done, in this order.
  package enum Output {
    case send([UInt8])
    /// The answer to the negotiation: the client gets what happens from here on, and nothing before it.
    case negotiated([UInt8])
    /// Once what was sent before is on its way.
    case perform(@Sendable () -> Void)
  }

  private let pretty: Bool
  private var stream = JSONStream()
  private var isNegotiated = false

  package init(pretty: Bool = false) { self.pretty = pretty }

  /// What a client is told first.
  var greeting: [UInt8] { line(["QMP": ["version": MonitorVersion.value, "capabilities": []]]) }

  /// A message as it goes out: one line, unless it is to be pretty.
  func line(_ value: JSONValue) -> [UInt8] { value.text(pretty: pretty) + Array("\r\n".utf8) }

  /// Takes what has arrived.
  /// - Parameter act: false when the client is behind, and its further requests wait.
  /// - Returns: how many bytes that used up; the rest is to come again.
  @discardableResult
  package mutating func receive(
    _ bytes: some Sequence<UInt8>, on target: any MonitorTarget, _ act: (Output) -> Bool
  ) -> Int {
    // Taken out, as the stream calls back into the session.
    var stream = stream
    defer { self.stream = stream }
    return stream.receive(bytes) { item in
      switch item {
      case .error(let text): act(.send(line(Self.error(.generic(text)))))
      case .value(let value): respond(to: value, on: target, act)
      }
    }
  }

  private mutating func respond(
    to value: JSONValue, on target: any MonitorTarget, _ act: (Output) -> Bool
  ) -> Bool {
    var id: JSONValue?
    if case .object(let object) = value { id = object["id"] }
    do throws(MonitorError) {
      let request = try Request(value)
      if request.name == "qmp_capabilities", !isNegotiated {
        try negotiate(request.arguments)
        return act(.negotiated(line(Self.answer([:], id))))
      }
      switch try command(request.name).run(request.arguments, target) {
      case .answer(let value): return act(.send(line(Self.answer(value, id))))
      case .answerThen(let value, let action):
        let goesOn = act(.send(line(Self.answer(value, id))))
        return act(.perform(action)) && goesOn
      }
    } catch {
      return act(.send(line(Self.error(error, id))))
    }
  }

  private mutating func negotiate(_ object: JSONObject) throws(MonitorError) {
    let arguments = try CapabilityArguments(object)
    guard arguments.enabled.isEmpty else {
      throw .generic("Capability \(arguments.enabled.joined(separator: ", ")) not available")
    }
    isNegotiated = true
  }

  private func command(_ name: String) throws(MonitorError) -> MonitorCommand {
    guard isNegotiated else {
      throw .commandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
    }
    guard let command = MonitorCommands.named(name) else {
      throw .commandNotFound("The command \(name) has not been found")
    }
    return command
  }

  private static func answer(_ value: JSONValue, _ id: JSONValue?) -> JSONValue {
    var object: JSONObject = ["return": value]
    object["id"] = id
    return .object(object)
  }

  private static func error(_ error: MonitorError, _ id: JSONValue? = nil) -> JSONValue {
    var object = JSONObject()
    object["id"] = id
    object["error"] = ["class": .string(error.errorClass.rawValue), "desc": .string(error.text)]
    return .object(object)
  }

  /// A message that asks for something (qapi/qmp-dispatch.c, `qmp_dispatch_check_obj`).
  private struct Request {
    var name = ""
    var arguments = JSONObject()

    init(_ value: JSONValue) throws(MonitorError) {
      guard case .object(let object) = value else { throw .generic("QMP input must be a JSON object") }
      var hasName = false
      for member in object.members {
        switch member.name {
        case "execute":
          guard case .string(let text) = member.value else {
            throw .generic("QMP input member 'execute' must be a string")
          }
          name = text
          hasName = true
        case "arguments":
          guard case .object(let given) = member.value else {
            throw .generic("QMP input member 'arguments' must be an object")
          }
          arguments = given
        case "id": break
        default: throw .generic("QMP input member '\(member.name)' is unexpected")
        }
      }
      guard hasName else { throw .generic("QMP input lacks member 'execute'") }
    }
  }
}
