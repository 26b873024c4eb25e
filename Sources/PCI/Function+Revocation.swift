import Hardware

/// The durations of the steps of `Function.revoke`, in the unit of the caller's clock.
public struct RevocationTimes: Hashable, Sendable {
  /// The time to make the function unreachable; shorter if it was refused before.
  public var refuse: UInt64 = 0
  /// The time until nothing of the function was in flight.
  public var drain: UInt64 = 0
  /// The time to release all resources of the machine and the host.
  public var release: UInt64 = 0

  public init() {}
}

/// The removal of a function in three steps: refuse, drain, release. There is no other way to remove a function.
extension Function {
  /// Makes the function unreachable for the guest at once. Configuration reads return all ones, the BARs leave the
  /// buses, the function's own requests are refused for good, and it sends no interrupts. Until `revoke`, a doorbell in
  /// the kernel still wakes a worker, which then does nothing: the removal of a doorbell could block a vCPU for
  /// milliseconds.
  ///
  /// Any thread may call this, also several at once, and also a vCPU during an access to this function, because it does
  /// not block. It only tries locks that are held across a call into the model or the host. If such a lock is taken,
  /// its holder completes the work when it releases the lock. Accesses in flight complete, but cannot undo any of this.
  ///
  /// The model keeps its host resources until `revoke`: a passed-through device continues its DMA, as the guest's
  /// tables permit; the kernel forwards the device's messages; and vCPUs reach the mapped pages of its BARs.
  public func refuse() {
    // Count this call as an access, so that a revocation on another thread waits for its end.
    let phase = environment.gate.accesses.begin()
    defer { environment.gate.accesses.end(phase) }
    environment.gate.close()
    requester.revoke()
    leaveBus()
    cutInterruptWire()
    detachRegions()
  }

  /// Removes the function for good: refuses it, waits until nothing of it is in flight, and releases all its resources.
  /// Later calls do nothing; a concurrent call waits for the first one.
  ///
  /// Must not be called on a vCPU's thread, on a thread of the device's workers or timers, or with a lock held, because
  /// it waits for those threads.
  /// - Parameter now: returns the time, in any unit.
  @discardableResult
  public func revoke(now: () -> UInt64 = { 0 }) -> RevocationTimes {
    environment.revocation.withLock { isRevoked in
      if isRevoked { return RevocationTimes() }
      isRevoked = true
      var times = RevocationTimes()
      let start = now()
      refuse()
      let refused = now()
      times.refuse = refused &- start
      environment.withdrawDoorbells()
      let model = model
      model?.endRequests()
      environment.drain()
      let drained = now()
      times.drain = drained &- refused
      // Release first the board's records about the device, then its BARs, then its own resources.
      environment.release()
      withdrawRegions()
      model?.released()
      dropModel()
      times.release = now() &- drained
      return times
    }
  }
}
