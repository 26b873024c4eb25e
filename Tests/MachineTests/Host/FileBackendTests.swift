import Devices
import Glibc
import Hardware
import Linux
import Testing

@testable import Machine

@Suite("A disk's file")
struct FileBackendTests {
  private let path = "/tmp/nestling-backend-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private let file: ScatteredFile

  init() throws {
    let memory = try GuestMemory(size: 0x40_0000, lowLimit: 0x20_0000)
    try FileDescriptor(opening: path, O_WRONLY | O_CREAT, mode: 0o600).write([UInt8](repeating: 1, count: 8192))
    file = try ScatteredFile(opening: path, readOnly: false, memory: memory)
    unlink(path)
  }

  /// fallocate(2) returns EINVAL for a range that it cannot handle: on a block device with sectors of 4 KiB for a range
  /// of 512 bytes, on every file for an empty range.
  @Test("EINVAL of fallocate is no I/O error: zeroes are unsupported, and a discard is skipped")
  func invalidRange() throws {
    for unmaps in [false, true] {
      let backend = FileBackend(file, discardUnmaps: unmaps)
      for mayUnmap in [false, true] {
        #expect(throws: BlockError.unsupported) { try backend.writeZeroes(0..<0, mayUnmap: mayUnmap) }
      }
      try backend.discard(0..<0)
    }
  }

  @Test("EINVAL of a read is an I/O error")
  func invalidRead() {
    let backend = FileBackend(file, discardUnmaps: false)
    #expect(throws: BlockError.inputOutput) {
      try backend.read(at: 1 << 63, into: [PhysicalSegment(address: 0, count: 512)])
    }
  }
}
