import Hardware
import Synchronization

/// Guest memory in an array: slow, safe, and without a system call.
public final class HeapMemory: PhysicalMemory {
  private let base: UInt64
  private let bytes: Mutex<[UInt8]>

  /// RAM at `base..<base + size`, zeroed.
  public init(base: UInt64 = 0, size: Int) {
    self.base = base
    bytes = Mutex([UInt8](repeating: 0, count: size))
  }

  private func offset(_ address: UInt64, _ count: UInt64, in size: Int) -> Int? {
    guard address >= base, address - base <= UInt64(size), count <= UInt64(size) - (address - base) else { return nil }
    return Int(address - base)
  }

  private func load<Value: FixedWidthInteger & UnsignedInteger & BitwiseCopyable & Sendable>(
    _ type: Value.Type, _ address: UInt64
  )
    -> Value?
  {
    let width = Value.bitWidth / 8
    guard address % UInt64(width) == 0 else { return nil }
    return bytes.withLock { bytes in
      guard let at = offset(address, UInt64(width), in: bytes.count) else { return nil }
      // A single unaligned load: the fuzzers spend much of their time here.
      return Value(littleEndian: bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at, as: type) })
    }
  }

  private func store<Value: FixedWidthInteger & UnsignedInteger & BitwiseCopyable & Sendable>(
    _ value: Value, _ address: UInt64
  ) -> Bool {
    let width = Value.bitWidth / 8
    guard address % UInt64(width) == 0 else { return false }
    return bytes.withLock { bytes in
      guard let at = offset(address, UInt64(width), in: bytes.count) else { return false }
      bytes.withUnsafeMutableBytes { $0.storeBytes(of: value.littleEndian, toByteOffset: at, as: Value.self) }
      return true
    }
  }

  public func loadUInt16(at address: UInt64) -> UInt16? { load(UInt16.self, address) }
  public func loadUInt32(at address: UInt64) -> UInt32? { load(UInt32.self, address) }
  public func loadUInt64(at address: UInt64) -> UInt64? { load(UInt64.self, address) }
  @discardableResult
  public func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { store(value, address) }
  @discardableResult
  public func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool { store(value, address) }
  @discardableResult
  public func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { store(value, address) }

  public func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? {
    guard address % 8 == 0 else { return nil }
    return bytes.withLock { bytes in
      guard let at = offset(address, 8, in: bytes.count) else { return nil }
      let original = bytes.load(UInt64.self, at: at)
      if original == expected { bytes.store(desired, at: at) }
      return original
    }
  }

  public func read(from address: UInt64, into target: inout MutableRawSpan) -> Bool {
    let copy = self.copy(address, count: target.byteCount)
    guard let copy else { return false }
    for index in copy.indices { target.storeBytes(of: copy[index], toByteOffset: index, as: UInt8.self) }
    return true
  }

  public func write(_ source: RawSpan, to address: UInt64) -> Bool {
    var copy: [UInt8] = []
    for index in 0..<source.byteCount { copy.append(source.unsafeLoad(fromByteOffset: index, as: UInt8.self)) }
    return store(copy, at: address)
  }

  public func contains(_ address: UInt64, count: UInt64) -> Bool {
    bytes.withLock { offset(address, count, in: $0.count) != nil }
  }

  /// Returns a copy of the range, or nil if any of it is not RAM.
  public func copy(_ address: UInt64, count: Int) -> [UInt8]? {
    bytes.withLock { bytes in
      guard let at = offset(address, UInt64(count), in: bytes.count) else { return nil }
      return Array(bytes[at..<at + count])
    }
  }

  @discardableResult
  public func store(_ source: [UInt8], at address: UInt64) -> Bool {
    bytes.withLock { bytes in
      guard let at = offset(address, UInt64(source.count), in: bytes.count) else { return false }
      bytes.replaceSubrange(at..<at + source.count, with: source)
      return true
    }
  }
}
