/// The exits of one CPU since measuring began. Times are in nanoseconds.
public struct ExitSummary: Hashable, Sendable {
  /// The guest's action that caused an exit.
  public enum Cause: Hashable, Sendable {
    /// An access to a port. The value is nil for a read.
    case port(UInt16, written: UInt64?)
    /// An access to memory. The value is nil for a read.
    case memory(UInt64, written: UInt64?)
    case endOfInterrupt(vector: UInt8)
    case halt
    /// A signal to the CPU's thread.
    case signal
    case other
  }

  public struct Longest: Hashable, Sendable {
    public var time: UInt64 = 0
    /// Nil if there was no exit.
    public var cause: Cause?

    public init(time: UInt64 = 0, cause: Cause? = nil) {
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

  mutating func add(_ time: UInt64, _ cause: Cause, isUndisturbed: Bool) {
    count += 1
    total &+= time
    if time > longest.time { longest = Longest(time: time, cause: cause) }
    if isUndisturbed, time > longestUndisturbed.time { longestUndisturbed = Longest(time: time, cause: cause) }
  }
}
