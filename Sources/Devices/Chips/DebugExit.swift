import Hardware

/// QEMU's isa-debug-exit: a port by which a test kernel ends the machine with a status of its own.
///
/// Writing v ends it with (v << 1) | 1, never zero, so that a success is not taken for a guest that
/// never ran. The caller's exit status is the low byte of it.
public final class DebugExit: BusDevice {
  /// Size of the I/O region, in bytes, as test kernels ask for it: `iosize=4`.
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
