/// The exits of one CPU since measuring began. Times are in nanoseconds.
public struct ExitSummary: Hashable, Sendable {
  public struct Longest: Hashable, Sendable {
    public var time: UInt64 = 0
    /// The guest's action, for example `port 0xcc8 write 0x1`.
    public var cause = ""

    public init(time: UInt64 = 0, cause: String = "") {
      self.time = time
      self.cause = cause
    }
  }

  public var count: UInt64 = 0
  public var total: UInt64 = 0
  public var longest = Longest()
  /// The longest of the exits during which the host's scheduler did not preempt the thread. Its time includes waits for
  /// locks and for the host.
  public var longestUndisturbed = Longest()

  public init() {}

  mutating func add(_ time: UInt64, _ cause: @autoclosure () -> String, isUndisturbed: Bool) {
    count += 1
    total &+= time
    if time > longest.time { longest = Longest(time: time, cause: cause()) }
    if isUndisturbed, time > longestUndisturbed.time { longestUndisturbed = Longest(time: time, cause: cause()) }
  }
}
