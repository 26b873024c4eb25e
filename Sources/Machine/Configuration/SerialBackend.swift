/// What a serial port is connected to.
public enum SerialBackend: Hashable, Sendable {
  /// There is no port.
  case none
  /// A character device, by its id.
  case character(Identifier)
}
