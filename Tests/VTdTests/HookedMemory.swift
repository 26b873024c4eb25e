import Hardware
import Synchronization
import TestSupport

/// RAM that runs an action before a load from one address, so that a test can stop a walk there.
final class HookedMemory: WrappedMemory {
  let memory: HeapMemory
  private let hook = Mutex<(address: UInt64, action: @Sendable () -> Void)?>(nil)

  init(size: Int) { memory = HeapMemory(size: size) }

  func onLoad(at address: UInt64, _ action: @escaping @Sendable () -> Void) {
    hook.withLock { $0 = (address, action) }
  }

  func loadUInt64(at address: UInt64) -> UInt64? {
    if let hook = hook.withLock({ $0 }), hook.address == address { hook.action() }
    return memory.loadUInt64(at: address)
  }
}
