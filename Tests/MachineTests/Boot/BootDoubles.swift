import Hardware
import Synchronization
import TestSupport

@testable import Machine

/// An image in an array.
struct ArrayImage: ImageSource {
  let bytes: [UInt8]
  let memory: HeapMemory?

  init(_ bytes: [UInt8], memory: HeapMemory?) {
    self.bytes = bytes
    self.memory = memory
  }

  var size: UInt64 { UInt64(bytes.count) }

  private func part(_ fileOffset: UInt64, _ count: UInt64) throws(ImageSourceError) -> ArraySlice<UInt8> {
    guard fileOffset <= size, count <= size - fileOffset else {
      throw .pastEnd(fileOffset: fileOffset, count: count)
    }
    return bytes[Int(fileOffset)..<Int(fileOffset + count)]
  }

  func read(at fileOffset: UInt64, count: Int) throws(ImageSourceError) -> [UInt8] {
    Array(try part(fileOffset, UInt64(count)))
  }

  func load(at fileOffset: UInt64, count: UInt64, to physicalAddress: UInt64) throws(ImageSourceError) {
    let part = try part(fileOffset, count)
    guard let memory else { return }
    guard memory.store(Array(part), at: physicalAddress) else {
      throw .notMemory(physicalAddress: physicalAddress, count: count)
    }
  }
}

/// An image whose every read fails, like a file on a broken disk.
struct BrokenImage: ImageSource {
  var size: UInt64 { 1 << 20 }

  func read(at fileOffset: UInt64, count: Int) throws(ImageSourceError) -> [UInt8] {
    throw .host(.init("read", code: 5))
  }

  func load(at fileOffset: UInt64, count: UInt64, to physicalAddress: UInt64) throws(ImageSourceError) {
    throw .host(.init("read", code: 5))
  }
}

/// Memory that stores nothing and counts the writes, so that many loads take little time.
final class CountingMemory: PhysicalMemory {
  let size: UInt64
  private let count = Mutex(0)

  init(size: UInt64) { self.size = size }

  var writes: Int { count.withLock { $0 } }

  func contains(_ address: UInt64, count: UInt64) -> Bool { address <= size && count <= size - address }

  func write(_ bytes: RawSpan, to address: UInt64) -> Bool {
    count.withLock { $0 += 1 }
    return contains(address, count: UInt64(bytes.byteCount))
  }

  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool { false }
  func loadUInt16(at address: UInt64) -> UInt16? { nil }
  func loadUInt32(at address: UInt64) -> UInt32? { nil }
  func loadUInt64(at address: UInt64) -> UInt64? { nil }
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool { false }
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool { false }
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool { false }
  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? { nil }
}

/// A guest's memory and the boot request for it.
struct BootBench {
  let memory: HeapMemory
  var layout: GuestMemoryLayout
  var commandLine = "console=ttyS0"
  var initialRAMDisk: [UInt8]?
  var rootPointer: UInt64? = 0xe_0000

  init(size: Int) {
    memory = HeapMemory(size: size)
    layout = GuestMemoryLayout(lowRAMEnd: UInt64(size))
  }

  func load(_ kernel: [UInt8]) throws(BootError) -> BootEntry {
    var disk: BootFile?
    if let initialRAMDisk { disk = BootFile(image: ArrayImage(initialRAMDisk, memory: memory), name: "disk.img") }
    return try BootRequest(
      kernel: BootFile(image: ArrayImage(kernel, memory: memory), name: "kernel.bin"), initialRAMDisk: disk,
      commandLine: commandLine, layout: layout, rootPointer: rootPointer
    ).load(into: memory)
  }

  /// Returns the error that stops the boot, or nil when the boot succeeds.
  func refusal(_ kernel: [UInt8]) -> BootError? {
    do throws(BootError) {
      _ = try load(kernel)
      return nil
    } catch { return error }
  }

  func bytes(_ address: UInt64, _ count: Int) -> [UInt8] { memory.copy(address, count: count) ?? [] }
  func word(_ address: UInt64) -> UInt32 { bytes(address, 4).load(UInt32.self, at: 0) }
  func long(_ address: UInt64) -> UInt64 { bytes(address, 8).load(UInt64.self, at: 0) }

  /// Returns the zero-terminated string at `address`.
  func text(_ address: UInt64) -> String {
    var characters: [UInt8] = []
    while let byte = memory.copy(address + UInt64(characters.count), count: 1)?.first, byte != 0 {
      characters.append(byte)
    }
    return String(decoding: characters, as: UTF8.self)
  }
}

/// Returns bytes that differ by their position.
func pattern(_ count: Int, seed: UInt8 = 7) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) &+ seed }
}

/// Returns `count` bytes that are accepted as an initrd: a cpio magic number, then filler.
func cpio(_ count: Int) -> [UInt8] { Array("070701".utf8) + pattern(count - 6) }
