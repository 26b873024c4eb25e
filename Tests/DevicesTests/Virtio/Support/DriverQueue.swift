import Devices
import Hardware
import TestSupport

/// The driver's side of a split queue in RAM: virtio 1.2, 2.7.
struct DriverQueue {
  struct Buffer {
    var address: UInt64
    var count: UInt32
    var writable: Bool

    static func readable(_ address: UInt64, _ count: Int) -> Buffer {
      Buffer(address: address, count: UInt32(count), writable: false)
    }
    static func writable(_ address: UInt64, _ count: Int) -> Buffer {
      Buffer(address: address, count: UInt32(count), writable: true)
    }
  }

  struct Used: Equatable {
    var id: UInt32
    var length: UInt32
  }

  /// The bytes of a queue of 256 descriptors: table, available ring and used ring, each aligned to a page.
  static let footprint: UInt64 = 0x3000

  let memory: HeapMemory
  let size: UInt16
  /// Physical addresses of the areas.
  let table: UInt64
  let available: UInt64
  let used: UInt64
  private var nextDescriptor: UInt16 = 0
  private(set) var availableIndex: UInt16 = 0
  private var seenUsed: UInt16 = 0

  init(memory: HeapMemory, size: UInt16, at base: UInt64) {
    self.memory = memory
    self.size = size
    table = base
    available = base + 0x1000
    used = base + 0x2000
  }

  /// - Parameter offset: The value that the driver adds to each address for the device, and that the IOMMU subtracts.
  func layout(offset: UInt64 = 0) -> VirtQueue.Layout {
    VirtQueue.Layout(
      size: size, descriptorArea: table + offset, driverArea: available + offset, deviceArea: used + offset)
  }

  func writeDescriptor(
    _ index: UInt16, address: UInt64, length: UInt32, flags: UInt16, next: UInt16 = 0, table other: UInt64? = nil
  ) {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: address)
    bytes.append(littleEndian: length)
    bytes.append(littleEndian: flags)
    bytes.append(littleEndian: next)
    memory.store(bytes, at: (other ?? table) + 16 * UInt64(index))
  }

  /// Writes a chain into the next descriptors, and makes it available.
  @discardableResult
  mutating func submit(_ buffers: [Buffer]) -> UInt16 {
    let head = nextDescriptor
    for (position, buffer) in buffers.enumerated() {
      let next = (nextDescriptor + 1) % size
      let last = position == buffers.count - 1
      writeDescriptor(
        nextDescriptor, address: buffer.address, length: buffer.count,
        flags: (last ? 0 : 1) | (buffer.writable ? 2 : 0), next: last ? 0 : next)
      nextDescriptor = next
    }
    offer(head)
    return head
  }

  /// Submits a chain of one descriptor that refers to a table.
  @discardableResult
  mutating func submit(_ buffers: [Buffer], indirectAt table: UInt64, deviceAddress: UInt64? = nil) -> UInt16 {
    for (position, buffer) in buffers.enumerated() {
      let last = position == buffers.count - 1
      writeDescriptor(
        UInt16(position), address: buffer.address, length: buffer.count,
        flags: (last ? 0 : 1) | (buffer.writable ? 2 : 0), next: last ? 0 : UInt16(position + 1), table: table)
    }
    let head = nextDescriptor
    writeDescriptor(head, address: deviceAddress ?? table, length: UInt32(16 * buffers.count), flags: 4)
    nextDescriptor = (nextDescriptor + 1) % size
    offer(head)
    return head
  }

  /// Puts a head into the available ring.
  mutating func offer(_ head: UInt16) {
    memory.storeUInt16(head, at: available + 4 + 2 * UInt64(availableIndex % size))
    availableIndex &+= 1
    memory.storeUInt16(availableIndex, at: available + 2)
  }

  /// Returns the entries of the used ring since the last call.
  mutating func takeUsed() -> [Used] {
    var entries: [Used] = []
    while seenUsed != memory.loadUInt16(at: used + 2) {
      let at = used + 4 + 8 * UInt64(seenUsed % size)
      entries.append(Used(id: memory.loadUInt32(at: at)!, length: memory.loadUInt32(at: at + 4)!))
      seenUsed &+= 1
    }
    return entries
  }

  /// VIRTQ_AVAIL_F_NO_INTERRUPT
  func setNoInterrupt(_ set: Bool) { memory.storeUInt16(set ? 1 : 0, at: available) }
  /// VIRTQ_USED_F_NO_NOTIFY
  var noNotify: Bool { memory.loadUInt16(at: used)! & 1 != 0 }
  func setUsedEvent(_ index: UInt16) { memory.storeUInt16(index, at: available + 4 + 2 * UInt64(size)) }
  var availableEvent: UInt16 { memory.loadUInt16(at: used + 4 + 8 * UInt64(size))! }
}
