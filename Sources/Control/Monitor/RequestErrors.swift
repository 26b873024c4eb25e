import Machine

/// What the machine answers, in QEMU's classes and words.
extension MonitorError {
  init(_ error: RequestError) {
    self =
      switch error {
      case .ended: .generic("The machine ends")
      case .needsReset: .generic("Resetting the Virtual Machine is required")
      }
  }
}

extension MonitorTarget {
  /// Has the machine carry something out, and waits until it has.
  func perform(_ request: MachineRequest) throws(MonitorError) {
    do throws(RequestError) {
      try control.perform(request)
    } catch {
      throw MonitorError(error)
    }
  }
}
