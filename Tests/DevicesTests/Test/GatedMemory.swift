import Hardware
import Synchronization
import TestSupport

/// Memory whose writes wait for a gate, so that a test can look while one is in flight.
final class GatedMemory: WrappedMemory {
  let memory: HeapMemory
  private let gate = SemaphoreParking()
  private let state = Mutex((waiting: 0, written: 0, isOpen: false))

  init(size: Int) { memory = HeapMemory(size: size) }

  /// Writes that came so far, and bytes that were written.
  var waiting: Int { state.withLock { $0.waiting } }
  var written: Int { state.withLock { $0.written } }

  /// Lets the write that waits, and all later ones, pass.
  func open() {
    state.withLock { $0.isOpen = true }
    gate.unpark()
  }

  func write(_ bytes: RawSpan, to address: UInt64) -> Bool {
    state.withLock { $0.waiting += 1 }
    while !state.withLock({ $0.isOpen }) { gate.park() }
    let count = bytes.byteCount
    state.withLock { $0.written += count }
    return memory.write(bytes, to: address)
  }
}
