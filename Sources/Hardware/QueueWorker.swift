/// A thread that serves one queue of a device, so that a doorbell does not hold up a vCPU.
public protocol QueueWorker: AnyObject, Sendable {
  /// Has the handler run soon, once for any number of calls before it starts.
  func wake()

  /// From now on a guest's write to this guest physical address wakes the worker, without an exit
  /// where the accelerator can do that; nil takes it back. The region below still gets the writes
  /// that come another way, and calls `wake`.
  func setDoorbell(at address: UInt64?)

  /// Returns when the handler is not running and will not run again. Not to be called by the handler.
  func stop()
}

public protocol QueueWorkerSource: AnyObject, Sendable {
  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker
}
