import Hardware

/// Memory that forwards all accesses to plain memory, except those that a test overrides.
public protocol WrappedMemory: PhysicalMemory {
  var memory: HeapMemory { get }
}

extension WrappedMemory {
  public func loadUInt16(at address: UInt64) -> UInt16? { memory.loadUInt16(at: address) }
  public func loadUInt32(at address: UInt64) -> UInt32? { memory.loadUInt32(at: address) }
  public func loadUInt64(at address: UInt64) -> UInt64? { memory.loadUInt64(at: address) }
  public func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { memory.storeUInt16(value, at: address) }
  public func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool { memory.storeUInt32(value, at: address) }
  public func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { memory.storeUInt64(value, at: address) }
  public func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? {
    memory.compareExchangeUInt64(at: address, expected: expected, desired: desired)
  }
  public func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool {
    memory.read(from: address, into: &bytes)
  }
  public func write(_ bytes: RawSpan, to address: UInt64) -> Bool { memory.write(bytes, to: address) }
  public func contains(_ address: UInt64, count: UInt64) -> Bool { memory.contains(address, count: count) }
}
