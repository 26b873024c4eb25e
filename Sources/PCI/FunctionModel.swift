import Hardware

/// What a device does behind its configuration space. Calls come from any vCPU's thread, two at once if the
/// guest wants; none is made with a lock of this module held.
public protocol FunctionModel: AnyObject, Sendable {
  /// - Parameter offset: from the BAR's start; `offset + width` lies within it. MSI-X's part is not passed on.
  func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64
  func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64)

  /// Function Level Reset, or the reset of the whole board: back to the state after construction.
  func reset()

  /// Where a BAR decodes now; nil while it does not. Called again for the same place when `parts` change.
  /// - Parameter parts: offsets of what the bus has it answer, in order: something else may be in its way. An accelerator
  ///   may answer for these alone in the device's stead.
  func placed(bar: Int, at base: UInt64?, visible parts: [Range<UInt64>])

  /// A chance to answer a configuration read in the hardware's stead: a window such as virtio's. nil: not mine.
  func readConfiguration(offset: Int, width: AccessWidth) -> UInt64?

  /// A chance to answer parts of a configuration read, where `readConfiguration` did not.
  /// - Parameter own: what the function's own space has.
  func configurationRead(offset: Int, width: AccessWidth, own: UInt64) -> UInt64

  /// Told of a configuration write after it went through the masks. Told of the Command register, too, when a bridge above
  /// lets other addresses or requests pass than before.
  func configurationWritten(offset: Int, width: AccessWidth, value: UInt64)

  /// The function is refused, and about to be revoked: ends the device's own requests as soon as it can, and has work
  /// that is under way end early. Accesses of other CPUs may still be in flight, as may the device's workers be.
  func endRequests()

  /// Nothing of the function is in flight, and nothing will come: gives up what it has of the machine and the host.
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
