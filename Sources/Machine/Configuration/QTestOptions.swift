/// The options `-qtest` and `-qtest-log`.
public struct QTestOptions: Hashable, Sendable {
  /// The id of the client's character device.
  public var device: Identifier
  public var log = Log.standardError

  public init(device: Identifier) { self.device = device }

  /// The destination of the log of commands and answers.
  public enum Log: Hashable, Sendable {
    case none
    case standardError
    /// A file, which is truncated first.
    case file(path: String)
  }
}
