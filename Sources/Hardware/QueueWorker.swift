/// A thread that serves one queue of a device, so that vCPUs do not wait for the device.
public protocol QueueWorker: AnyObject, Sendable {
  /// Schedules one run of the handler. Further calls before the handler starts have no effect.
  func wake()

  /// Makes guest writes to a guest physical address wake the worker, without a VM exit if the accelerator can do that;
  /// nil removes the doorbell. The device's region still receives writes that arrive another way, and calls `wake`.
  func setDoorbell(at address: UInt64?)

  /// Stops the worker. On return the handler does not run, and never will again. The handler must not call this.
  func stop()
}

public protocol QueueWorkerSource: AnyObject, Sendable {
  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker
}
