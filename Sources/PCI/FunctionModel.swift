import Hardware

/// The device behind a function's configuration space. Any vCPU's thread may call it, and two may call at once. No lock
/// of this module is held during a call, except during `placed`, `endRequests` and `released`, each of which is
/// serialized.
public protocol FunctionModel: AnyObject, Sendable {
  /// - Parameter offset: from the BAR's start; `offset + width` lies within the BAR. The function itself handles the
  ///   part that belongs to MSI-X.
  func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64
  func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64)

  /// Returns the device to its state after construction, for a Function Level Reset or a reset of the board.
  func reset()

  /// Reports the address at which a BAR decodes now; nil while it does not decode. Called again with the same address
  /// when `parts` change.
  /// - Parameter parts: offsets of the parts in which the bus passes accesses to the BAR, in order; other regions may
  ///   cover the rest. An accelerator may answer accesses instead of the device only within these parts.
  func placed(bar: Int, at base: UInt64?, visible parts: [Range<UInt64>])

  /// Answers a configuration read of a register that the model provides, such as virtio's configuration access window.
  /// - Returns: nil for all other registers.
  func readConfiguration(offset: Int, width: AccessWidth) -> UInt64?

  /// Changes the result of a configuration read that `readConfiguration` did not answer.
  /// - Parameter own: the value in the function's own space.
  func configurationRead(offset: Int, width: AccessWidth, own: UInt64) -> UInt64

  /// Reacts to a configuration write that the function has performed. Also called for the Command register when a
  /// bridge above changes the addresses or requests that it forwards.
  func configurationWritten(offset: Int, width: AccessWidth, value: UInt64)

  /// Ends the device's own requests soon, without completing current work. The function is refused and about to be
  /// revoked. Accesses of vCPUs may still be in flight, and the device's workers may still run.
  func endRequests()

  /// Releases the model's resources of the machine and the host. Nothing of the function is in flight, and no calls
  /// follow.
  func released()
}

extension FunctionModel {
  public func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 { width.allOnes }
  public func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {}
  public func reset() {}
  public func placed(bar: Int, at base: UInt64?, visible parts: [Range<UInt64>]) {}
  public func readConfiguration(offset: Int, width: AccessWidth) -> UInt64? { nil }
  public func configurationRead(offset: Int, width: AccessWidth, own: UInt64) -> UInt64 { own }
  public func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {}
  public func endRequests() {}
  public func released() {}
}
