/// The error of a command as QMP reports it: a class for programs and a text for people (qapi/error.json).
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
