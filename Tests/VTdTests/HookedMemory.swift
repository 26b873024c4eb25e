import Hardware
import Synchronization
import TestSupport

/// RAM that runs an action before a load from one address, to stop a walk where a test wants it.
final class HookedMemory: PhysicalMemory {
  private let ram: HeapMemory
  private let hook = Mutex<(address: UInt64, action: @Sendable () -> Void)?>(nil)

  init(size: Int) { ram = HeapMemory(size: size) }

  func onLoad(at address: UInt64, _ action: @escaping @Sendable () -> Void) {
    hook.withLock { $0 = (address, action) }
  }

  func loadUInt64(at address: UInt64) -> UInt64? {
    if let hook = hook.withLock({ $0 }), hook.address == address { hook.action() }
    return ram.loadUInt64(at: address)
  }

  func loadUInt16(at address: UInt64) -> UInt16? { ram.loadUInt16(at: address) }
  func loadUInt32(at address: UInt64) -> UInt32? { ram.loadUInt32(at: address) }
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { ram.storeUInt16(value, at: address) }
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool { ram.storeUInt32(value, at: address) }
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { ram.storeUInt64(value, at: address) }
  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? {
    ram.compareExchangeUInt64(at: address, expected: expected, desired: desired)
  }
  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool { ram.read(from: address, into: &bytes) }
  func write(_ bytes: RawSpan, to address: UInt64) -> Bool { ram.write(bytes, to: address) }
  func contains(_ address: UInt64, count: UInt64) -> Bool { ram.contains(address, count: count) }
}
