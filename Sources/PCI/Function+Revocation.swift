import Hardware

/// How long the parts of `Function.revoke` took, by the clock that it was given.
public struct RevocationTimes: Hashable, Sendable {
  /// From the call until nothing reached the function any more; less where it was refused before.
  public var refuse: UInt64 = 0
  /// Until nothing of it was in flight.
  public var drain: UInt64 = 0
  /// Until it held nothing of the machine or the host.
  public var release: UInt64 = 0

  public init() {}
}

/// The end of a function: refused, drained, released. There is no other way off the board.
extension Function {
  /// Takes the function from the guest at once. Configuration accesses answer all ones, the BARs leave the buses, its own
  /// requests are refused for good, and it sends no interrupt. A doorbell that the kernel watches wakes a worker that does
  /// nothing, until `revoke`: to take it from the kernel would keep the CPU for milliseconds.
  ///
  /// From any thread, that of a CPU within an access of this very function included, and from several at once: it waits
  /// for nothing. Locks that are held across a call of the model or of the host are only tried; where one is taken, its
  /// holder does the rest when it is through. Accesses in flight end as they will, and cannot undo any of this.
  ///
  /// The only host calls are those that take doorbells back, as a move of the BAR makes them. What the model has with the
  /// host stays until `revoke`: a passed-through device goes on with its DMA, its translations kept in step with the
  /// guest's, the kernel forwards the messages that it signals, and CPUs reach the pages of its BARs that are mapped.
  public func refuse() {
    // Counted as an access: a revocation on another thread waits until this is through.
    let phase = environment.gate.accesses.begin()
    defer { environment.gate.accesses.end(phase) }
    environment.gate.close()
    requester.revoke()
    leaveBus()
    cutInterruptWire()
    detachRegions()
  }

  /// Takes the function off the board for good: refuses it, waits until nothing of it is in flight, lets go of all that
  /// it has. Later calls do nothing; one that comes meanwhile waits for the first.
  ///
  /// Not on a CPU's thread, nor on a worker's or timer's of this device, and with no lock held: it waits for them.
  /// - Parameter now: the time, in a unit of the caller's.
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
      // First what keeps others in step with the device, then where CPUs find it, then what it holds itself.
      environment.release()
      withdrawRegions()
      model?.released()
      dropModel()
      times.release = now() &- drained
      return times
    }
  }
}
