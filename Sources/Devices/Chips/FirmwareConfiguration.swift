import Hardware
import Synchronization

/// The fw_cfg device's two I/O ports (QEMU docs/specs/fw_cfg.rst): a 16-bit selector, and the byte-wide data port at
/// the address of the selector's upper byte.
///
/// As in QEMU, a byte read of either port returns the next byte of the item, and writes to the data port are dropped.
/// Past an item's end, reads return zero. Lock order: code that holds the lock takes no other lock.
public final class FirmwareConfiguration: BusDevice {
  public static let regionSize: UInt64 = 2

  private struct State {
    var selected: [UInt8]
    var position = 0
  }

  private let items: FirmwareConfigurationItems
  private let state: Mutex<State>

  public init(items: FirmwareConfigurationItems) {
    self.items = items
    state = Mutex(State(selected: items.contents(selector: 0)))
  }

  /// Selects the signature, as at power-on.
  public func reset() { select(0) }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    guard width == .byte else { return width.allOnes }
    return state.withLock { state in
      guard state.position < state.selected.count else { return 0 }
      defer { state.position += 1 }
      return UInt64(state.selected[state.position])
    }
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    guard offset == 0, width == .word else { return }
    select(UInt16(truncatingIfNeeded: value))
  }

  private func select(_ selector: UInt16) {
    let contents = items.contents(selector: selector)
    state.withLock { $0 = State(selected: contents) }
  }
}
