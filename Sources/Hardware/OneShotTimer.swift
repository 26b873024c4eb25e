/// Calls back once, later: the host's timer.
public protocol OneShotTimer: AnyObject, Sendable {
  /// Runs the handler on some thread after a time; a timer that was started before and has not run yet does not.
  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void)
}
