import Linux

/// A request's structure followed by a list, the form in which the kernel passes lists.
///
/// Accesses are bounds-checked: a load beyond the end returns nil, because an offset from the kernel must not cause a
/// trap.
struct VariableRequest<Header> {
  private(set) var bytes: [UInt8]

  /// - Parameter room: bytes for the list.
  init(_ header: Header, room: Int) {
    bytes = [UInt8](repeating: 0, count: MemoryLayout<Header>.size + room)
    self.header = header
  }

  static var headerSize: Int { MemoryLayout<Header>.size }
  var count: Int { bytes.count }

  var header: Header {
    get {
      // SAFETY: the array has at least the structure's size and is aligned for it.
      unsafe bytes.withUnsafeBytes { unsafe $0.load(as: Header.self) }
    }
    set { store(newValue, at: 0) }
  }

  /// - Parameter offset: from the structure's start; aligned for the value.
  func load<Value>(_ type: Value.Type, at offset: Int) -> Value? {
    guard isWithin(offset, type) else { return nil }
    // SAFETY: range and alignment were checked.
    return unsafe bytes.withUnsafeBytes { unsafe $0.load(fromByteOffset: offset, as: type) }
  }

  mutating func store<Value>(_ value: Value, at offset: Int) {
    guard isWithin(offset, Value.self) else { return }
    // SAFETY: range and alignment were checked.
    unsafe bytes.withUnsafeMutableBytes { unsafe $0.storeBytes(of: value, toByteOffset: offset, as: Value.self) }
  }

  private func isWithin<Value>(_ offset: Int, _ type: Value.Type) -> Bool {
    offset >= 0 && offset <= bytes.count - MemoryLayout<Value>.size && offset % MemoryLayout<Value>.alignment == 0
  }

  /// Calls `body` with all of the bytes; the pointer is valid until `body` returns.
  /// - Parameter body: returns the result of a system call.
  mutating func withBytes(_ body: (UnsafeMutableRawPointer?) -> Int32) -> Int32 {
    unsafe bytes.withUnsafeMutableBytes { unsafe body($0.baseAddress) }
  }
}
