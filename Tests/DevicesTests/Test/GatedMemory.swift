import Hardware
import Synchronization
import TestSupport

/// Memory whose writes wait for a gate, so that a test can look while one is in flight.
final class GatedMemory: PhysicalMemory {
  private let memory: HeapMemory
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

  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool { memory.read(from: address, into: &bytes) }
  func loadUInt16(at address: UInt64) -> UInt16? { memory.loadUInt16(at: address) }
  func loadUInt32(at address: UInt64) -> UInt32? { memory.loadUInt32(at: address) }
  func loadUInt64(at address: UInt64) -> UInt64? { memory.loadUInt64(at: address) }
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { memory.storeUInt16(value, at: address) }
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool { memory.storeUInt32(value, at: address) }
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { memory.storeUInt64(value, at: address) }
  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? {
    memory.compareExchangeUInt64(at: address, expected: expected, desired: desired)
  }
  func contains(_ address: UInt64, count: UInt64) -> Bool { memory.contains(address, count: count) }
}
