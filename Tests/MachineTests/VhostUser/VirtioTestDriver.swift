import Hardware
import PCI

@testable import Machine

/// A driver of a virtio device on PCI (virtio 1.2, section 4.1) that uses one queue of 16 entries, for one request after
/// another.
final class VirtioTestDriver {
  private static let bar: UInt64 = 0xe000_0000
  private static let descriptors: UInt64 = 0x10_1000
  private static let available: UInt64 = 0x10_2000
  private static let used: UInt64 = 0x10_3000
  private static let request: UInt64 = 0x10_4000
  private static let reply: UInt64 = 0x10_5000

  private let board: Board
  private let address: RequesterID
  private let queue: UInt64
  private let features: UInt64
  private var next: UInt16 = 0

  /// Places the device's BAR 4 and enables the function.
  /// - Parameter features: bits 63:32 of the driver's features.
  init(_ board: Board, _ address: RequesterID, queue: UInt64 = 0, features: UInt64 = 1) {
    self.board = board
    self.address = address
    self.queue = queue
    self.features = features
    write(configuration: 0x20, Self.bar)
    write(configuration: 0x24, 0)
    write(configuration: 4, 6)
  }

  private func select(_ offset: UInt64) {
    board.writePort(0xcf8, 4, 1 << 31 | UInt64(address.rawValue) << 8 | offset)
  }

  func read(configuration offset: UInt64) -> UInt64 {
    select(offset)
    return board.readPort(0xcfc, 4)
  }

  func write(configuration offset: UInt64, _ value: UInt64) {
    select(offset)
    board.writePort(0xcfc, 4, value)
  }

  func writeMemory(_ address: UInt64, _ width: Int, _ value: UInt64) { board.writeMemory(address, width, value) }

  /// Reads a doubleword of the device configuration.
  func configuration(_ offset: UInt64) -> UInt64 { board.readMemory(Self.bar + 0x2000 + offset, 4) }

  var status: UInt64 {
    get { board.readMemory(Self.bar + 0x14, 1) }
    set { board.writeMemory(Self.bar + 0x14, 1, newValue) }
  }

  var isReset: Bool { status == 0 }

  /// Negotiates the features, sets the queue up and sets DRIVER_OK.
  func start() {
    status = 1
    status = 3
    board.writeMemory(Self.bar + 0x08, 4, 1)
    board.writeMemory(Self.bar + 0x0c, 4, features)
    status = 0xb
    board.writeMemory(Self.bar + 0x16, 2, queue)
    board.writeMemory(Self.bar + 0x18, 2, 16)
    for (field, area) in [(0x20, Self.descriptors), (0x28, Self.available), (0x30, Self.used)] as [(UInt64, UInt64)] {
      board.writeMemory(Self.bar + field, 4, area)
      board.writeMemory(Self.bar + field + 4, 4, 0)
      for word in 0..<512 as Range<UInt64> { _ = board.memory.storeUInt64(0, at: area + word * 8) }
    }
    next = 0
    board.writeMemory(Self.bar + 0x1c, 2, 1)
    status = 0xf
  }

  /// Makes a request available and notifies the device.
  /// - Parameter answer: the number of bytes that the device may write.
  func submit(_ bytes: [UInt8], answer count: UInt32) {
    let memory = board.memory
    _ = memory.write(bytes.span.bytes, to: Self.request)
    let empty = [UInt8](repeating: 0xff, count: Int(count))
    _ = memory.write(empty.span.bytes, to: Self.reply)
    // Flags: 1 for next, 2 for write.
    _ = memory.storeUInt64(Self.request, at: Self.descriptors)
    _ = memory.storeUInt64(UInt64(bytes.count) | 1 << 32 | 1 << 48, at: Self.descriptors + 8)
    _ = memory.storeUInt64(Self.reply, at: Self.descriptors + 16)
    _ = memory.storeUInt64(UInt64(count) | 2 << 32, at: Self.descriptors + 24)
    _ = memory.storeUInt16(0, at: Self.available + 4 + UInt64(next % 16) * 2)
    next &+= 1
    _ = memory.storeUInt16(next, at: Self.available + 2)
    board.writeMemory(Self.bar + 0x3000 + 4 * queue, 2, queue)
  }

  var usedIndex: UInt16? { board.memory.loadUInt16(at: Self.used + 2) }

  func answer(_ count: Int) -> [UInt8] {
    (0..<(count + 1) / 2).flatMap { index in
      [UInt8](littleEndian: board.memory.loadUInt16(at: Self.reply + 2 * UInt64(index)) ?? 0)
    }
  }
}
