/// What `-qtest` and `-qtest-log` say.
public struct QTestOptions: Hashable, Sendable {
  /// The character device that the client is on.
  public var device: Identifier
  public var log = Log.standardError

  public init(device: Identifier) { self.device = device }

  /// Where every command and answer is written down.
  public enum Log: Hashable, Sendable {
    case none
    case standardError
    /// A file, which is emptied first.
    case file(path: String)
  }
}
