/// A kernel or initrd file. The loaders read bytes of it, or load them directly into guest memory.
///
/// `size` does not change. If the file shrinks later, reads throw `pastEnd`; they never return fewer bytes.
public protocol ImageSource {
  /// In bytes.
  var size: UInt64 { get }

  /// - Returns: exactly `count` bytes.
  func read(at fileOffset: UInt64, count: Int) throws(ImageSourceError) -> [UInt8]

  /// Loads `count` bytes of the image into guest memory, without an intermediate copy.
  func load(at fileOffset: UInt64, count: UInt64, to physicalAddress: UInt64) throws(ImageSourceError)
}

/// Why bytes of an image could not be read or loaded.
public enum ImageSourceError: Error, Hashable, Sendable {
  /// The image has no bytes up to `fileOffset + count`.
  case pastEnd(fileOffset: UInt64, count: UInt64)
  /// A part of `physicalAddress..<physicalAddress + count` is not in guest memory.
  case notMemory(physicalAddress: UInt64, count: UInt64)
  /// The host's read failed with this errno.
  case host(errno: Int32)
}
