import Hardware
import Synchronization
import TestSupport

/// Memory whose writes wait for a gate, so that a test can act while a write is in flight.
final class GatedMemory: WrappedMemory {
  let memory: HeapMemory
  private let gate = SemaphoreParking()
  private let state = Mutex((waiting: 0, written: 0, isOpen: false))

  init(size: Int) { memory = HeapMemory(size: size) }

  /// The writes that arrived, and the bytes written.
  var waiting: Int { state.withLock { $0.waiting } }
  var written: Int { state.withLock { $0.written } }

  /// Opens the gate for the waiting write and all later ones.
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
