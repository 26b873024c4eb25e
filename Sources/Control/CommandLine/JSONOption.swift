import JSON
import Machine

/// Arguments of `-device` and `-object` in JSON: an object with a typed value for each property. The texts of errors
/// are QEMU's, as in QMP (system/vl.c, qapi/qobject-input-visitor.c).
enum JSONOption {
  /// - Returns: Nil if the argument is an option string.
  static func object(_ text: String) throws(OptionProblem) -> JSONObject? {
    guard text.hasPrefix("{") else { return nil }
    var stream = JSONStream()
    var items: [JSONStream.Item] = []
    stream.receive(text.utf8) {
      items.append($0)
      return true
    }
    if let last = stream.finish() {
      if case .error = last, items.isEmpty { throw .json("JSON parse error, premature EOI") }
      items.append(last)
    }
    switch items.first {
    case .value(.object(let object)) where items.count == 1: return object
    case .error(let problem): throw .json(ErrorText.text(for: problem))
    default: throw .json("Expecting at most one JSON value")
    }
  }

  static func device(_ object: JSONObject) throws(OptionProblem) -> any DeviceOptions {
    do throws(MonitorError) {
      guard case .string(let driver)? = object["driver"] else { throw .generic("Parameter 'driver' is missing") }
      let deviceType = try DeviceArguments.read([PropertyAssignment(name: "driver", value: driver)]).type
      var rest = object
      rest["driver"] = nil
      let assignments = try JSONProperties.typed(rest, of: deviceType)
      do throws(PropertyError) {
        let options = try deviceType.init(assignments)
        try QOMArguments.checkDescriptor(of: options)
        return options
      } catch {
        throw .generic(MonitorError.text(error, deviceType.typeName))
      }
    } catch {
      throw .json(error.text)
    }
  }

  static func object(_ object: JSONObject) throws(OptionProblem) -> any ObjectOptions {
    do throws(MonitorError) {
      let name = try JSONProperties.lenient(object["qom-type"], "qom-type")
      let (objectType, _) = try ObjectArguments.type(named: name, atStart: true)
      var rest = object
      rest["qom-type"] = nil
      let options = try ObjectArguments.read(
        objectType, name ?? "", try JSONProperties.strict(rest, of: objectType))
      try mapError(try QOMArguments.checkDescriptor(of: options)) { MonitorError.unexpected($0, objectType.typeName) }
      return options
    } catch {
      throw .json(error.text)
    }
  }
}

extension ErrorText {
  /// The texts are QEMU's, except that for a malformed value.
  static func text(for problem: JSONProblem) -> String {
    switch problem {
    case .expectingValue: "JSON parse error, expecting value"
    case .stray(let byte) where (0x21..<0x7f).contains(byte): "JSON parse error, stray '\(UnicodeScalar(byte))'"
    case .stray(let byte): "JSON parse error, stray '\\x\(byte < 0x10 ? "0" : "")\(String(byte, radix: 16))'"
    case .tooLong: "JSON token size limit exceeded"
    case .tooDeep: "JSON nesting depth limit exceeded"
    case .textAfterValue: "JSON parse error, there is text after the value"
    case .malformed(let text): "JSON parse error, \(text)"
    }
  }
}
