import Hardware
import Synchronization

/// Connects an `MC146818` to the machine: to its two I/O ports (index and data), and to the host's clock.
///
/// Lock order: code that holds the lock takes no other lock. So the host's clock is read before the lock is taken.
public final class CMOSClock: ByteWideDevice {
  /// The size of the I/O region in bytes: index, data.
  public static let regionSize: UInt64 = 2

  private struct State {
    var chip: MC146818
    /// The selected register. Bit 7 of the index port masks NMI on a PC; this machine has no source of NMI.
    var index: UInt8 = 0
  }

  private let state: Mutex<State>
  private let clock: @Sendable () -> ClockReading

  /// - Parameter clock: returns the host's time, which the guest's clock shows until the guest sets it.
  public init(clock: @escaping @Sendable () -> ClockReading) {
    self.clock = clock
    state = Mutex(State(chip: MC146818(now: clock())))
  }

  /// Resets the chip and the index. Keeps the time and the contents of the RAM.
  public func reset() {
    state.withLock { state in
      state.chip.reset()
      state.index = 0
    }
  }

  public func readByte(at offset: UInt64) -> UInt8 {
    guard offset == 1 else { return 0xff }  // The index port is write-only.
    let now = clock()
    return state.withLock { $0.chip.read($0.index, now: now) }
  }

  public func writeByte(_ value: UInt8, at offset: UInt64) {
    switch offset {
    case 0:
      state.withLock { $0.index = value & 0x7f }
    case 1:
      let now = clock()
      state.withLock { $0.chip.write(value, to: $0.index, now: now) }
    default:
      break
    }
  }
}
