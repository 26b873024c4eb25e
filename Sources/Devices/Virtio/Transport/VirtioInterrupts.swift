import PCI
import Synchronization

/// The interrupts of a virtio function: MSI-X vectors, or the ISR status and INTx (virtio 1.2, sections 4.1.4.5 and
/// 4.1.5).
///
/// Lock order: this object's lock, then the function's.
final class VirtioInterrupts: Sendable {
  private enum Cause {
    static let queue: UInt8 = 1
    static let configuration: UInt8 = 2
  }

  private let function: Function
  /// The ISR status. INTx is driven under the lock, so that the wire always matches the register.
  private let status = Mutex<UInt8>(0)
  private let configurationVector = Atomic<UInt16>(CommonConfiguration.noVector)

  init(function: Function) { self.function = function }

  private var usesMessages: Bool { function.msix?.isEnabled == true }

  func setConfigurationVector(_ vector: UInt16) { configurationVector.store(vector, ordering: .relaxed) }

  /// Sends a used buffer notification.
  func signalQueue(vector: UInt16) {
    if usesMessages {
      if vector != CommonConfiguration.noVector { function.msix?.signal(Int(vector)) }
    } else {
      raise(Cause.queue)
    }
  }

  /// Sends a configuration change notification.
  func signalConfiguration() {
    // The ISR bit is also set if MSI-X is enabled (4.1.4.5.1).
    raise(Cause.configuration)
    let vector = configurationVector.load(ordering: .relaxed)
    if vector != CommonConfiguration.noVector { function.msix?.signal(Int(vector)) }
  }

  /// Performs the driver's read of the ISR status, which clears it and deasserts INTx.
  func takeStatus() -> UInt8 {
    status.withLock { status in
      let value = status
      status = 0
      if value != 0 { function.setINTx(false) }
      return value
    }
  }

  func reset() {
    setConfigurationVector(CommonConfiguration.noVector)
    _ = takeStatus()
  }

  private func raise(_ cause: UInt8) {
    status.withLock { status in
      status |= cause
      // Do not set INTx if MSI-X is enabled: the wire would be asserted after MSI-X is disabled, without a new cause.
      if !usesMessages { function.setINTx(true) }
    }
  }
}
