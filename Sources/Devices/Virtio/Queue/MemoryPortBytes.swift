import Hardware

/// Transfers between a DMA port and arrays of bytes.
extension DMAPort {
  /// Reads into a range of an array.
  func read(from address: UInt64, into bytes: inout [UInt8], _ range: Range<Int>) throws(DMAError) {
    var span = bytes.mutableSpan
    var raw = MutableRawSpan(_elements: &span)
    var part = raw._mutatingExtracting(range)
    try read(from: address, into: &part)
  }

  /// Writes a range of an array.
  func write(_ bytes: [UInt8], _ range: Range<Int>, to address: UInt64) throws(DMAError) {
    try write(RawSpan(_elements: bytes.span).extracting(range), to: address)
  }
}
