import Linux

/// A kernel or initrd file. The loaders read bytes of it, or load them directly into guest memory.
///
/// `size` does not change. If the file shrinks later, reads throw `pastEnd`; they never return fewer bytes.
protocol ImageSource {
  /// The size in bytes.
  var size: UInt64 { get }

  /// - Returns: exactly `count` bytes.
  func read(at fileOffset: UInt64, count: Int) throws(ImageSourceError) -> [UInt8]

  /// Loads `count` bytes of the image into guest memory, without an intermediate copy.
  func load(at fileOffset: UInt64, count: UInt64, to physicalAddress: UInt64) throws(ImageSourceError)
}

/// The reason why bytes of an image could not be read or loaded.
public enum ImageSourceError: Error, Hashable, Sendable {
  /// The image has no bytes up to `fileOffset + count`.
  case pastEnd(fileOffset: UInt64, count: UInt64)
  /// A part of `physicalAddress..<physicalAddress + count` is not in guest memory.
  case notMemory(physicalAddress: UInt64, count: UInt64)
  case host(SystemError)
}

/// Reads an image. Checks each read against the file's end, and names the file in errors.
struct ImageReader {
  let image: any ImageSource
  let file: BootError.File

  init(_ image: any ImageSource, is file: BootError.File) {
    self.image = image
    self.file = file
  }

  /// Reads the image's first `limit` bytes, or all of a shorter image.
  func readStart(atMost limit: Int) throws(BootError) -> [UInt8] {
    let count = Int(min(image.size, UInt64(limit)))
    do { return try image.read(at: 0, count: count) } catch { throw .readFailed(file, error) }
  }

  func read(_ part: BootError.Part, at offset: UInt64, count: Int) throws(BootError) -> [UInt8] {
    try check(part, at: offset, count: UInt64(count))
    do { return try image.read(at: offset, count: count) } catch { throw .readFailed(file, error) }
  }

  /// Throws if a part does not end within the file.
  func check(_ part: BootError.Part, at offset: UInt64, count: UInt64) throws(BootError) {
    let (end, overflow) = offset.addingReportingOverflow(count)
    guard !overflow else { throw .truncated(file, part, end: nil, size: image.size) }
    guard end <= image.size else { throw .truncated(file, part, end: end, size: image.size) }
  }
}
