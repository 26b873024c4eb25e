// Threads and timers that the host provides to devices: modules of the guest's side make no system calls.

/// A thread that serves one queue of a device, so that vCPUs do not wait for the device.
public protocol QueueWorker: AnyObject, Sendable {
  /// Schedules one run of the handler. Further calls before the handler starts have no effect.
  func wake()

  /// Sets the doorbell: a guest write to this guest physical address wakes the worker, without a VM exit if the
  /// accelerator can do that. Nil removes the doorbell. Writes that still reach the device's region call `wake`.
  func setDoorbell(at address: UInt64?)

  /// Lends the queue to another server. From now on a guest write to the doorbell, and `wake`, signal the notifier
  /// `kick`, and the handler runs only when the server signals `call`, or spuriously.
  /// - Returns: the same notifiers at every call; nil if the host has no descriptor for them.
  func lend() -> QueueNotifiers?

  /// Ends `lend`. A notification that the other server has not seen wakes the worker.
  func reclaim()

  /// Stops the worker. On return the handler does not run, and never will again. The handler must not call this.
  func stop()
}

extension QueueWorker {
  public func lend() -> QueueNotifiers? { nil }
  public func reclaim() {}
}

public protocol QueueWorkerSource: AnyObject, Sendable {
  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker
}

/// A timer of the host that calls a handler once.
public protocol OneShotTimer: AnyObject, Sendable {
  /// Calls the handler after a time, on any thread. Cancels an earlier start whose handler has not run yet.
  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void)
}

/// A place where one thread sleeps until another wakes it.
public protocol Parking: AnyObject, Sendable {
  /// Sleeps until `unpark` is called. Returns at once if that happened since the last `park`. May also return
  /// spuriously.
  func park()
  func unpark()
}
