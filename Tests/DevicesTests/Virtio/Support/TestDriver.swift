import Devices
import Hardware
import PCI
import TestSupport

/// A driver that, like one in a guest, uses only configuration space and the structures that its capabilities lead to.
final class TestDriver {
  struct Capability: Equatable {
    var offset: Int
    var length: UInt8
    var type: UInt8
    var bar: UInt8
    var structureOffset: UInt32
    var structureLength: UInt32
  }

  enum Failure: Error {
    case noCapability(UInt8)
    case featuresRefused
    case queueMissing
  }

  let board: TestBoard
  let function: Function
  private(set) var capabilities: [Capability] = []
  private var notifyMultiplier: UInt32 = 0

  init(_ device: VirtioPCI, on board: TestBoard) {
    self.board = board
    function = device.function
    var pointer = Int(config(0x34, .byte))
    while pointer != 0 {
      if config(pointer, .byte) == 0x09 {
        capabilities.append(
          Capability(
            offset: pointer, length: UInt8(config(pointer + 2, .byte)), type: UInt8(config(pointer + 3, .byte)),
            bar: UInt8(config(pointer + 4, .byte)), structureOffset: UInt32(config(pointer + 8, .doubleword)),
            structureLength: UInt32(config(pointer + 12, .doubleword))))
        if config(pointer + 3, .byte) == 2 { notifyMultiplier = UInt32(config(pointer + 16, .doubleword)) }
      }
      pointer = Int(config(pointer + 1, .byte))
    }
  }

  func config(_ offset: Int, _ width: AccessWidth) -> UInt64 {
    function.readConfiguration(offset: offset, width: width)
  }

  func setBusMaster(_ on: Bool) {
    function.writeConfiguration(offset: 4, width: .word, value: on ? 0x6 : 0x2)
  }

  func capability(_ type: UInt8) throws -> Capability {
    guard let found = capabilities.first(where: { $0.type == type }) else { throw Failure.noCapability(type) }
    return found
  }

  /// Returns the address of a structure on the memory bus, from the BAR registers.
  func address(of type: UInt8) throws -> UInt64 {
    let capability = try capability(type)
    let register = 0x10 + 4 * Int(capability.bar)
    let low = config(register, .doubleword) & ~0xf
    let high = config(register, .doubleword) & 4 != 0 ? config(register + 4, .doubleword) : 0
    return (high << 32 | low) + UInt64(capability.structureOffset)
  }

  func read(_ type: UInt8, _ offset: UInt64, _ width: AccessWidth) throws -> UInt64 {
    board.memoryBus.read(address: try address(of: type) + offset, width: width) ?? width.allOnes
  }

  func write(_ type: UInt8, _ offset: UInt64, _ width: AccessWidth, _ value: UInt64) throws {
    board.memoryBus.write(address: try address(of: type) + offset, width: width, value: value)
  }

  func common(_ offset: UInt64, _ width: AccessWidth) throws -> UInt64 { try read(1, offset, width) }
  func setCommon(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) throws {
    try write(1, offset, width, value)
  }

  var status: UInt8 {
    get throws { UInt8(try common(0x14, .byte)) }
  }

  func setStatus(_ value: UInt8) throws { try setCommon(0x14, .byte, UInt64(value)) }

  /// Returns the features that the device offers.
  func offered() throws -> UInt64 {
    try setCommon(0x00, .doubleword, 0)
    let low = try common(0x04, .doubleword)
    try setCommon(0x00, .doubleword, 1)
    return try common(0x04, .doubleword) << 32 | low
  }

  /// Resets the device and negotiates up to FEATURES_OK.
  /// - Parameter features: The features to accept; nil for all that are offered.
  func negotiate(_ features: UInt64? = nil) throws {
    setBusMaster(true)
    try setStatus(0)
    try setStatus(1)
    try setStatus(3)
    let wanted: UInt64
    if let features { wanted = features } else { wanted = try offered() }
    try setCommon(0x08, .doubleword, 0)
    try setCommon(0x0c, .doubleword, wanted & 0xffff_ffff)
    try setCommon(0x08, .doubleword, 1)
    try setCommon(0x0c, .doubleword, wanted >> 32)
    try setStatus(0xb)
    guard try status & 8 != 0 else { throw Failure.featuresRefused }
  }

  /// Lays out and enables a queue.
  /// - Parameter offset: The difference from physical addresses to those that the device must use.
  func setUp(
    queue index: UInt16, size: UInt16? = nil, at base: UInt64, vector: UInt16 = 0xffff, offset: UInt64 = 0
  ) throws -> DriverQueue {
    try setCommon(0x16, .word, UInt64(index))
    let maximum = UInt16(try common(0x18, .word))
    guard maximum > 0 else { throw Failure.queueMissing }
    let queue = DriverQueue(memory: board.memory, size: size ?? maximum, at: base)
    try setCommon(0x18, .word, UInt64(queue.size))
    let layout = queue.layout(offset: offset)
    for (register, address) in [
      (0x20, layout.descriptorArea), (0x28, layout.driverArea), (0x30, layout.deviceArea),
    ] {
      try setCommon(UInt64(register), .doubleword, address & 0xffff_ffff)
      try setCommon(UInt64(register + 4), .doubleword, address >> 32)
    }
    try setCommon(0x1a, .word, UInt64(vector))
    try setCommon(0x1c, .word, 1)
    return queue
  }

  func start() throws { try setStatus(0xf) }

  func notify(_ index: UInt16) throws {
    try setCommon(0x16, .word, UInt64(index))
    let offset = try common(0x1e, .word) * UInt64(notifyMultiplier)
    try write(2, offset, .word, UInt64(index))
  }

  /// Enables MSI-X and unmasks vectors; the data of vector v is 0x40 + v.
  func enableMSIX(vectors: Int) {
    var pointer = Int(config(0x34, .byte))
    while pointer != 0, config(pointer, .byte) != 0x11 { pointer = Int(config(pointer + 1, .byte)) }
    function.writeConfiguration(offset: pointer + 2, width: .word, value: 0x8000)
    for vector in 0..<UInt64(vectors) {
      let entry = TestBoard.tableBase + 16 * vector
      board.memoryBus.write(address: entry, width: .doubleword, value: 0xfee0_0000)
      board.memoryBus.write(address: entry + 4, width: .doubleword, value: 0)
      board.memoryBus.write(address: entry + 8, width: .doubleword, value: 0x40 + vector)
      board.memoryBus.write(address: entry + 12, width: .doubleword, value: 0)
    }
  }

  /// The data of the messages that arrived.
  var messages: [UInt32] { board.router.messages.map(\.data) }
}
