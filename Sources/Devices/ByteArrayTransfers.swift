import Hardware

// Transfers between memory and ranges of byte arrays.

extension DMAPort {
  /// Reads into a range of an array.
  func read(
    from address: UInt64, into bytes: inout [UInt8], _ range: Range<Int>, for access: DMAAccess = .read
  ) throws(DMAError) {
    var span = bytes.mutableSpan
    var raw = MutableRawSpan(_elements: &span)
    var part = raw._mutatingExtracting(range)
    try read(from: address, into: &part, for: access)
  }

  /// Writes a range of an array.
  func write(_ bytes: [UInt8], _ range: Range<Int>, to address: UInt64) throws(DMAError) {
    try write(RawSpan(_elements: bytes.span).extracting(range), to: address)
  }

  /// Writes a range of an array. Four aligned bytes are a single access, which may be an interrupt request (a write to
  /// 0xFEEx_xxxx).
  func writeRequest(_ bytes: [UInt8], _ range: Range<Int>, to address: UInt64) throws(DMAError) {
    if range.count == 4, address % 4 == 0 {
      try storeUInt32(bytes.load(UInt32.self, at: range.lowerBound), at: address)
    } else {
      try write(bytes, range, to: address)
    }
  }
}

extension PhysicalMemory {
  /// Reads into a range of an array.
  /// - Returns: false, with `bytes` unchanged, if any byte is not RAM.
  func read(from address: UInt64, into bytes: inout [UInt8], _ range: Range<Int>) -> Bool {
    var span = bytes.mutableSpan
    var raw = MutableRawSpan(_elements: &span)
    var part = raw._mutatingExtracting(range)
    return read(from: address, into: &part)
  }
}
