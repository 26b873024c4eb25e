import Hardware

/// QEMU's isa-debug-exit: a port by which a test kernel ends the machine with a chosen status.
///
/// A write of v ends the machine with the status (v << 1) | 1. The status is never zero, so it differs from the status
/// of a machine that ended in another way. The low byte becomes the exit status of the process.
public final class DebugExit: BusDevice {
  /// The size of the I/O region in bytes, as test kernels configure it: `iosize=4`.
  public static let regionSize: UInt64 = 4

  private let onExit: @Sendable (Int32) -> Void

  /// - Parameter onExit: called on the vCPU's thread for every write.
  public init(onExit: @escaping @Sendable (Int32) -> Void) {
    self.onExit = onExit
  }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0 }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    onExit(Int32(truncatingIfNeeded: value) << 1 | 1)
  }
}
