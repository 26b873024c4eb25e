import JSON

/// One client's QMP session (docs/interop/qmp-spec.rst): bytes in, bytes out. It uses no socket and no thread:
/// `Monitor` passes it the input and sends its output.
package struct QMPSession {
  /// An action for the caller. The caller must carry out the actions in order.
  package enum Output {
    case send([UInt8])
    /// Send the answer to `qmp_capabilities`. The client gets the events after this answer, and none before.
    case negotiated([UInt8])
    /// Run this action after the output so far has been sent.
    case perform(@Sendable () -> Void)
  }

  private let pretty: Bool
  private var stream = JSONStream()
  private var isNegotiated = false

  package init(pretty: Bool = false) { self.pretty = pretty }

  /// The first message of a session.
  var greeting: [UInt8] { line(["QMP": ["version": MonitorVersion.value, "capabilities": []]]) }

  /// Returns a message as bytes: one line, unless `pretty` is set.
  func line(_ value: JSONValue) -> [UInt8] { value.text(pretty: pretty) + Array("\r\n".utf8) }

  /// - Parameter act: Returns false when the client is slow to read, so its further requests must wait.
  /// - Returns: The number of bytes that were used. The caller passes the rest again later.
  @discardableResult
  package mutating func receive(
    _ bytes: some Sequence<UInt8>, on target: any MonitorTarget, _ act: (Output) -> Bool
  ) -> Int {
    // The stream calls back into the session, so it must not be accessed in place.
    var stream = stream
    defer { self.stream = stream }
    return stream.receive(bytes) { item in
      switch item {
      case .error(let problem): act(.send(line(Self.error(.generic(ErrorText.text(for: problem))))))
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
    ["return": value, "id": id]
  }

  private static func error(_ error: MonitorError, _ id: JSONValue? = nil) -> JSONValue {
    ["id": id, "error": ["class": .string(error.errorClass.rawValue), "desc": .string(error.text)]]
  }

  /// A client's request (qapi/qmp-dispatch.c, `qmp_dispatch_check_obj`).
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
