/// What a serial port is connected to.
public enum SerialBackend: Hashable, Sendable {
  /// There is no port.
  case none
  /// There is a port, and nothing listens.
  case null
  /// Nestling's own input and output, with the Ctrl-A commands.
  case stdio
  /// Output goes to a file, which is emptied first.
  case file(path: String)
  /// - Parameters:
  ///   - server: listens on the path; else connects to it.
  ///   - wait: the guest starts when somebody has connected. Only a server waits.
  case unixSocket(path: String, server: Bool, wait: Bool)
}
