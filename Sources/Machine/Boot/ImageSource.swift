/// A kernel or initrd as the loaders see it: bytes that can be read, or sent straight into guest memory.
///
/// The size is taken once; a file that shrinks afterwards gives `pastEnd`, never a short answer.
public protocol ImageSource {
  /// In bytes.
  var size: UInt64 { get }

  /// - Returns: exactly `count` bytes.
  func read(at fileOffset: UInt64, count: Int) throws(ImageSourceError) -> [UInt8]

  /// Puts `count` bytes of the image into guest memory without a copy of them in between.
  func load(at fileOffset: UInt64, count: UInt64, to physicalAddress: UInt64) throws(ImageSourceError)
}

/// Why bytes of an image did not arrive.
public enum ImageSourceError: Error, Hashable, Sendable {
  /// The image has no bytes up to `fileOffset + count`.
  case pastEnd(fileOffset: UInt64, count: UInt64)
  /// Guest memory does not hold all of `physicalAddress..<physicalAddress + count`.
  case notMemory(physicalAddress: UInt64, count: UInt64)
  /// The host's read failed, with this errno.
  case host(errno: Int32)
}
