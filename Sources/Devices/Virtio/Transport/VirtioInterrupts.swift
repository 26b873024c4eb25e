import PCI
import Synchronization

/// How a virtio function interrupts its driver: MSI-X vectors, or the ISR status and INTx: virtio 1.2, 4.1.4.5 and
/// 4.1.5.
///
/// Lock order: its lock, then the function's.
final class VirtioInterrupts: Sendable {
  private enum Cause {
    static let queue: UInt8 = 1
    static let configuration: UInt8 = 2
  }

  private let function: Function
  /// ISR status. INTx is driven under the lock, so that the wire and the register never disagree.
  private let status = Mutex<UInt8>(0)
  private let configurationVector = Atomic<UInt16>(CommonConfiguration.noVector)

  init(function: Function) { self.function = function }

  private var usesMessages: Bool { function.msix?.isEnabled == true }

  func setConfigurationVector(_ vector: UInt16) { configurationVector.store(vector, ordering: .relaxed) }

  /// A used buffer notification.
  func signalQueue(vector: UInt16) {
    if usesMessages {
      if vector != CommonConfiguration.noVector { function.msix?.signal(Int(vector)) }
    } else {
      raise(Cause.queue)
    }
  }

  /// A configuration change notification.
  func signalConfiguration() {
    // The bit is set with MSI-X, too: 4.1.4.5.1.
    raise(Cause.configuration)
    let vector = configurationVector.load(ordering: .relaxed)
    if vector != CommonConfiguration.noVector { function.msix?.signal(Int(vector)) }
  }

  /// The driver's read of the ISR status, which clears it and withdraws INTx.
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
      // Not while MSI-X is on: the wire would stand asserted for nobody once it is off.
      if !usesMessages { function.setINTx(true) }
    }
  }
}
