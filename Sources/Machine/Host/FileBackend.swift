import Devices
import Glibc
import Hardware
import Linux
import Synchronization

/// A disk's storage in a raw file or a block device of the host. Its size may change.
final class FileBackend: BlockBackend {
  private let file: ScatteredFile
  private let discardUnmaps: Bool
  private let capacity: Atomic<UInt64>
  /// Requests that write. Before a file shrinks, those that started with the earlier size must end.
  private let writes = RequestsInFlight()

  /// - Parameter discardUnmaps: whether the guest's discard frees space on the host.
  init(_ file: ScatteredFile, discardUnmaps: Bool) {
    self.file = file
    self.discardUnmaps = discardUnmaps
    capacity = Atomic(file.size)
  }

  var size: UInt64 { capacity.load(ordering: .acquiring) }

  /// Sets the size. On return, no request writes beyond the new size any more; later requests beyond it fail.
  func setSize(_ size: UInt64) {
    let earlier = capacity.exchange(size, ordering: .sequentiallyConsistent)
    if size < earlier { writes.drain(parking: ThreadParking()) }
  }

  /// Carries out a write, unless the disk has become too small for it.
  private func writing(
    _ range: Range<UInt64>, _ body: () throws(BlockError) -> Void
  ) throws(BlockError) {
    let phase = writes.begin()
    defer { writes.end(phase) }
    guard range.upperBound <= capacity.load(ordering: .sequentiallyConsistent) else { throw .inputOutput }
    try body()
  }

  var isReadOnly: Bool { file.isReadOnly }

  func read(at offset: UInt64, into segments: [PhysicalSegment]) throws(BlockError) {
    do { try file.read(at: offset, into: Self.convert(segments)) } catch { throw Self.convert(error) }
  }

  func write(at offset: UInt64, from segments: [PhysicalSegment]) throws(BlockError) {
    let count = segments.reduce(0) { $0 + UInt64($1.count) }
    try writing(offset..<offset + count) { () throws(BlockError) in
      do throws(SystemError) { try file.write(at: offset, from: Self.convert(segments)) } catch {
        throw Self.convert(error)
      }
    }
  }

  func flush() throws(BlockError) {
    do { try file.synchronize() } catch { throw Self.convert(error) }
  }

  func discard(_ range: Range<UInt64>) throws(BlockError) {
    guard discardUnmaps else { return }
    try writing(range) { () throws(BlockError) in
      do throws(SystemError) {
        try file.punchHole(at: range.lowerBound, count: range.upperBound - range.lowerBound)
      } catch {
        // Discard is a hint: storage without support for it keeps the data.
        let error = Self.convert(error)
        if error != .unsupported { throw error }
      }
    }
  }

  func writeZeroes(_ range: Range<UInt64>, mayUnmap: Bool) throws(BlockError) {
    let count = range.upperBound - range.lowerBound
    try writing(range) { () throws(BlockError) in
      do throws(SystemError) {
        if mayUnmap, discardUnmaps {
          try file.punchHole(at: range.lowerBound, count: count)
        } else {
          try file.zero(at: range.lowerBound, count: count)
        }
      } catch {
        throw Self.convert(error)
      }
    }
  }

  private static func convert(_ segments: [PhysicalSegment]) -> [ScatteredFile.Segment] {
    segments.map { ScatteredFile.Segment(address: $0.address, count: $0.count) }
  }

  private static func convert(_ error: SystemError) -> BlockError {
    switch error.code {
    case ENOSPC: .noSpace
    case EROFS, EBADF: .readOnly
    case EOPNOTSUPP: .unsupported
    // fallocate(2) on a block device needs whole sectors, which may be larger than the guest's, and on other files it
    // does not support every mode. For reads and writes, EINVAL is an error.
    case EINVAL where error.call == "fallocate": .unsupported
    default: .inputOutput
    }
  }
}
