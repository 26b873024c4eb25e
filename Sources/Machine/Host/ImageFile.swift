import Linux

/// A kernel or an initrd on the host.
struct ImageFile: ImageSource {
  private let file: ScatteredFile

  init(opening path: String, memory: GuestMemory) throws(SystemError) {
    file = try ScatteredFile(opening: path, readOnly: true, memory: memory)
  }

  var size: UInt64 { file.size }

  func read(at fileOffset: UInt64, count: Int) throws(ImageSourceError) -> [UInt8] {
    let bytes: [UInt8]
    do {
      bytes = try file.bytes(at: fileOffset, count: count)
    } catch {
      throw .host(error)
    }
    guard bytes.count == count else { throw .pastEnd(fileOffset: fileOffset, count: UInt64(count)) }
    return bytes
  }

  func load(at fileOffset: UInt64, count: UInt64, to physicalAddress: UInt64) throws(ImageSourceError) {
    guard fileOffset <= size, count <= size - fileOffset else {
      throw .pastEnd(fileOffset: fileOffset, count: count)
    }
    guard let length = Int(exactly: count), file.memory.contains(physicalAddress, count: count) else {
      throw .notMemory(physicalAddress: physicalAddress, count: count)
    }
    guard length > 0 else { return }
    let segment = ScatteredFile.Segment(address: physicalAddress, count: length)
    try mapError(try file.read(at: fileOffset, into: [segment]), ImageSourceError.host)
  }
}
