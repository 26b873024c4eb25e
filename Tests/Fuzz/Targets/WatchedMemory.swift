import Hardware
import Synchronization
import TestSupport

/// RAM as a virtio device reaches it. It decodes the descriptors that the device reads, apart from the device's own
/// decoder, and reports an access to a byte that is neither in the rings of the queue being served nor in a buffer that
/// the driver named for that access: virtio 1.2, section 2.7.
final class WatchedMemory: WrappedMemory {
  /// The rings of a queue, as the driver set them.
  struct Rings {
    var size: UInt64
    var table: UInt64
    var available: UInt64
    var used: UInt64
  }

  fileprivate struct Buffer {
    var address: UInt64
    var count: UInt64
    var isWritable = false

    func contains(_ start: UInt64, _ size: UInt64) -> Bool {
      start >= address && start - address <= count && size <= count - (start - address)
    }
  }

  fileprivate struct Queue {
    var rings: Rings
    /// The most bytes that the device may write to a chain that it has read, by the chain's head.
    var room: [UInt32: UInt64] = [:]
    /// The head in the entry of the used ring that the device wrote last.
    var usedHead: UInt32 = 0
  }

  fileprivate struct State {
    var queues: [Int: Queue] = [:]
    /// The queue being served.
    var served: Int?
    /// The chain that the device reads: its head, and its buffers in their order.
    var head: UInt32 = 0
    var buffers: [Buffer] = []
    /// The size of the chain's device-writable buffers so far.
    var room: UInt64 = 0
    /// The first half of a descriptor.
    var low: UInt64 = 0
    /// The indirect table that the chain refers to.
    var table: Buffer?
    /// The device-writable buffers of all chains of this service.
    var writable: [Buffer] = []
    var finding: Finding?
    var countdown: (accesses: Int, body: @Sendable () -> Void)?
  }

  let memory: HeapMemory
  private let state = Mutex(State())

  init(_ memory: HeapMemory) { self.memory = memory }

  // MARK: The target's side

  var finding: Finding? { state.withLock { $0.finding } }

  /// Sets the rings of a queue; nil while the queue is disabled.
  func setRings(_ rings: Rings?, of queue: Int) {
    state.withLock { state in
      if let rings {
        state.queues[queue, default: Queue(rings: rings)].rings = rings
      } else {
        state.queues[queue] = nil
      }
    }
  }

  func rings(of queue: Int) -> Rings? { state.withLock { $0.queues[queue]?.rings } }

  /// Runs a queue's worker.
  func serve(_ queue: Int, _ worker: () -> Void) {
    state.withLock { state in
      state.served = queue
      state.writable = []
      state.buffers = []
    }
    worker()
    state.withLock { $0.served = nil }
  }

  /// Calls `body` once, before an access of the device.
  /// - Parameter accesses: the number of accesses before that one.
  func after(_ accesses: Int, _ body: @escaping @Sendable () -> Void) {
    state.withLock { $0.countdown = (accesses, body) }
  }

  /// The device-readable bytes of the chain that the device reads, without the first `count`.
  func readable(from count: UInt64) -> [PhysicalSegment] {
    state.withLock { state in
      var skipped = count
      var segments: [PhysicalSegment] = []
      for buffer in state.buffers where !buffer.isWritable {
        let skip = min(skipped, buffer.count)
        skipped -= skip
        guard buffer.count > skip else { continue }
        let segment = PhysicalSegment(address: buffer.address &+ skip, count: Int(buffer.count - skip))
        if !segments.join(segment) { segments.append(segment) }
      }
      return segments
    }
  }

  // MARK: Checks

  /// Checks an access, and finds its queue.
  private func access(_ text: String, _ check: (inout State, inout Queue) -> Bool) {
    let body = state.withLock { state -> (@Sendable () -> Void)? in
      var body: (@Sendable () -> Void)?
      if let countdown = state.countdown {
        state.countdown = countdown.accesses > 0 ? (countdown.accesses - 1, countdown.body) : nil
        if countdown.accesses == 0 { body = countdown.body }
      }
      guard let served = state.served, var queue = state.queues.removeValue(forKey: served) else {
        state.note("\(text) while no queue is served")
        return body
      }
      if !check(&state, &queue) { state.note("queue \(served): \(text)") }
      state.queues[served] = queue
      return body
    }
    body?()
  }

  // MARK: PhysicalMemory

  func loadUInt16(at address: UInt64) -> UInt16? {
    let value = memory.loadUInt16(at: address)
    access("16 bits read at \(address)") { state, queue in
      let offset = address &- queue.rings.available
      // The flags, the index and used_event; between them, the entries.
      guard offset >= 4, offset < 4 + 2 * queue.rings.size else { return offset < 6 + 2 * queue.rings.size }
      state.head = UInt32(value ?? 0)
      state.buffers = []
      state.room = 0
      state.table = nil
      queue.room[state.head, default: 0] |= 0
      return true
    }
    return value
  }

  func loadUInt64(at address: UInt64) -> UInt64? {
    let value = memory.loadUInt64(at: address)
    access("64 bits read at \(address)") { state, queue in
      let offset = address &- queue.rings.table
      guard offset < 16 * queue.rings.size else { return false }
      if offset & 8 == 0 {
        state.low = value ?? 0
      } else if let value {
        state.add(state.low, value, &queue)
      }
      return true
    }
    return value
  }

  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool {
    let count = UInt64(bytes.byteCount)
    let isRead = memory.read(from: address, into: &bytes)
    let content = isRead ? memory.copy(address, count: Int(count)) : nil
    access("\(count) bytes read at \(address)") { state, queue in
      if let table = state.table, table.address == address, table.count == count {
        state.table = nil
        if let content { state.addTable(content, &queue) }
        return true
      }
      return state.buffers.contains { !$0.isWritable && $0.contains(address, count) }
    }
    return isRead
  }

  func write(_ bytes: RawSpan, to address: UInt64) -> Bool {
    let count = UInt64(bytes.byteCount)
    access("\(count) bytes written at \(address)") { state, _ in
      state.writable.contains { $0.contains(address, count) }
    }
    return memory.write(bytes, to: address)
  }

  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool {
    access("16 bits written at \(address)") { _, queue in
      let offset = address &- queue.rings.used
      return offset < 4 || offset == 4 + 8 * queue.rings.size
    }
    return memory.storeUInt16(value, at: address)
  }

  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool {
    access("used entry \(value) at \(address)") { _, queue in
      let offset = address &- queue.rings.used &- 4
      guard offset < 8 * queue.rings.size else { return false }
      if offset & 4 == 0 {
        queue.usedHead = value
        return queue.room[value] != nil
      }
      return UInt64(value) <= queue.room[queue.usedHead] ?? 0
    }
    return memory.storeUInt32(value, at: address)
  }

  func loadUInt32(at address: UInt64) -> UInt32? {
    access("32 bits read at \(address)") { _, _ in false }
    return memory.loadUInt32(at: address)
  }

  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool {
    access("64 bits written at \(address)") { _, _ in false }
    return memory.storeUInt64(value, at: address)
  }
}

extension WatchedMemory.State {
  fileprivate mutating func note(_ text: String) {
    if finding == nil { finding = Finding(text: "no descriptor permits this access: \(text)") }
  }

  /// Adds a descriptor to the chain.
  /// - Returns: the descriptor's next field; nil at the chain's end.
  @discardableResult
  fileprivate mutating func add(_ low: UInt64, _ high: UInt64, _ queue: inout WatchedMemory.Queue) -> UInt64? {
    let buffer = WatchedMemory.Buffer(address: low, count: high & 0xffff_ffff, isWritable: high[bit: 33])
    if high[bit: 34] {
      table = buffer
      return nil
    }
    buffers.append(buffer)
    if buffer.isWritable {
      writable.append(buffer)
      room &+= buffer.count
      queue.room[head] = max(queue.room[head] ?? 0, room)
    }
    return high[bit: 32] ? high >> 48 : nil
  }

  /// Adds the descriptors of an indirect table, in the order of their next fields.
  fileprivate mutating func addTable(_ bytes: [UInt8], _ queue: inout WatchedMemory.Queue) {
    func number(_ at: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(bytes[at + $1]) << UInt64(8 * $1) } }
    let count = bytes.count / 16
    var index = 0
    for _ in 0..<count where index < count {
      guard let next = add(number(16 * index), number(16 * index + 8), &queue) else { break }
      index = Int(next)
    }
    // A table within a table is an error of the driver.
    table = nil
  }
}
