/// A timer of the host that calls a handler once.
public protocol OneShotTimer: AnyObject, Sendable {
  /// Calls the handler after a time, on any thread. Cancels an earlier start whose handler has not run yet.
  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void)
}
