import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Devices
@testable import Machine

/// A driver of a `virtio-net-pci` on bus 0 of a running machine without a CPU: two queues in RAM.
final class NetworkGuest {
  private static let bufferCount = 8
  private static let bufferSize: UInt64 = 0x800

  private let board: Board
  private let bar: UInt64
  private let rings: UInt64
  private let device: UInt8
  private var sent: UInt16 = 0
  private var received: UInt16 = 0
  private var supplied: UInt16 = 0

  /// Places the device's BAR and starts the device.
  init(_ machine: RunningMachine, device: UInt8 = 3) {
    board = machine.board
    self.device = device
    bar = 0xd000_0000 + UInt64(device) << 20
    rings = 0x10_0000 * UInt64(device)
    write(configuration: 0x20, 4, bar)
    write(configuration: 0x24, 4, 0)
    write(configuration: 4, 2, 6)
    start()
  }

  private func write(configuration offset: UInt64, _ width: Int, _ value: UInt64) {
    board.writeMemory(BoardLayout.configurationAccess + UInt64(device) << 15 + offset, width, value)
  }

  private func write(_ offset: UInt64, _ width: Int, _ value: UInt64) { board.writeMemory(bar + offset, width, value) }
  private func read(_ offset: UInt64, _ width: Int) -> UInt64 { board.readMemory(bar + offset, width) }

  func start() {
    write(0x14, 1, 0)
    for status in [1, 3] as [UInt64] { write(0x14, 1, status) }
    // VIRTIO_NET_F_MAC and VIRTIO_NET_F_STATUS; VIRTIO_F_VERSION_1.
    write(0x08, 4, 0)
    write(0x0c, 4, 1 << 5 | 1 << 16)
    write(0x08, 4, 1)
    write(0x0c, 4, 1)
    write(0x14, 1, 0xb)
    #expect(status == 0xb)
    for queue in 0..<2 as Range<UInt64> {
      #expect(board.memory.write([UInt8](repeating: 0, count: 0x3000), to: ring(queue)))
      write(0x16, 2, queue)
      write(0x18, 2, UInt64(Self.bufferCount))
      for (register, area) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] as [(UInt64, UInt64)] {
        write(register, 4, ring(queue) + area)
        write(register + 4, 4, 0)
      }
      write(0x1c, 2, 1)
    }
    (sent, received, supplied) = (0, 0, 0)
    write(0x14, 1, 0xf)
  }

  var status: UInt64 { read(0x14, 1) }
  var isLinkUp: Bool { read(0x2006, 2) & 1 == 1 }
  var address: [UInt8] { (0..<6).map { UInt8(read(0x2000 + $0, 1)) } }
  /// Reads and thereby clears the ISR status; bit 1 is a change of the configuration.
  func takeInterrupts() -> UInt64 { read(0x1000, 1) }

  private func ring(_ queue: UInt64) -> UInt64 { rings + 0x3000 * queue }
  private func buffer(_ queue: UInt64, _ index: UInt16) -> UInt64 {
    rings + 0x8000 + (queue * UInt64(Self.bufferCount) + UInt64(index)) * Self.bufferSize
  }

  private func offer(_ queue: UInt64, _ index: UInt16, _ count: Int, isWritable: Bool) {
    let slot = index % UInt16(Self.bufferCount)
    let descriptor = ring(queue) + 16 * UInt64(slot)
    let memory = board.memory
    #expect(memory.storeUInt64(buffer(queue, slot), at: descriptor))
    #expect(memory.storeUInt32(UInt32(count), at: descriptor + 8))
    #expect(memory.storeUInt16(isWritable ? 2 : 0, at: descriptor + 12))
    #expect(memory.storeUInt16(slot, at: ring(queue) + 0x1004 + 2 * UInt64(slot)))
    #expect(memory.storeUInt16(index &+ 1, at: ring(queue) + 0x1002))
  }

  private func notify(_ queue: UInt64) { write(0x3000 + 4 * queue, 2, queue) }
  private func used(_ queue: UInt64) -> UInt16 { board.memory.loadUInt16(at: ring(queue) + 0x2002) ?? 0 }

  /// The number of packets that the device has not taken.
  var unsent: UInt16 { sent &- used(1) }

  /// Sends a frame.
  /// - Returns: false if the ring is full.
  @discardableResult
  func send(_ frame: [UInt8]) -> Bool {
    guard unsent < UInt16(Self.bufferCount) else { return false }
    let packet = [UInt8](repeating: 0, count: 12) + frame
    #expect(board.memory.write(packet, to: buffer(1, sent % UInt16(Self.bufferCount))))
    offer(1, sent, packet.count, isWritable: false)
    sent &+= 1
    notify(1)
    return true
  }

  /// Sends copies of a frame until the device takes no more.
  /// - Returns: the number of copies.
  func fill(with frame: [UInt8]) -> Int {
    var count = 0
    while count < 5000 {
      let end = ContinuousClock.now + .milliseconds(300)
      while unsent == UInt16(Self.bufferCount), ContinuousClock.now < end { usleep(200) }
      guard send(frame) else { break }
      count += 1
    }
    return count
  }

  /// Makes receive buffers available.
  func supply(_ count: Int = bufferCount) {
    for _ in 0..<count {
      offer(0, supplied, Int(Self.bufferSize), isWritable: true)
      supplied &+= 1
    }
    notify(0)
  }

  /// Takes the received frames.
  func take() -> [[UInt8]] {
    var frames: [[UInt8]] = []
    while received != used(0) {
      let entry = ring(0) + 0x2004 + 8 * UInt64(received % UInt16(Self.bufferCount))
      let slot = UInt16(board.memory.loadUInt32(at: entry) ?? 0)
      let count = Int(board.memory.loadUInt32(at: entry + 4) ?? 0)
      var packet = [UInt8](repeating: 0, count: count)
      var span = packet.mutableSpan
      var bytes = MutableRawSpan(_elements: &span)
      #expect(board.memory.read(from: buffer(0, slot), into: &bytes))
      frames.append(Array(packet.dropFirst(12)))
      received &+= 1
    }
    return frames
  }

  /// Waits for a number of frames.
  func wait(for count: Int) -> [[UInt8]] {
    var frames: [[UInt8]] = []
    #expect(
      eventually {
        frames += take()
        return frames.count >= count
      })
    return frames
  }
}

/// The other end of a `-netdev stream`, which the test holds.
final class StreamPeer {
  private let file: FileDescriptor
  private var bytes: [UInt8] = []

  init(_ file: consuming FileDescriptor) {
    self.file = file
    _ = fcntl(self.file.rawValue, F_SETFL, O_NONBLOCK)
  }

  func send(_ frames: [UInt8]...) throws {
    for frame in frames { try file.write([0, 0, UInt8(frame.count >> 8), UInt8(frame.count & 0xff)] + frame) }
  }

  func sendRaw(_ bytes: [UInt8]) throws { try file.write(bytes) }

  /// Waits for the next frame; nil if there is none.
  func receive() throws -> [UInt8]? {
    func frame() -> [UInt8]? {
      guard bytes.count >= 4 else { return nil }
      let count = bytes[..<4].reduce(0) { $0 << 8 | Int($1) }
      guard bytes.count >= 4 + count else { return nil }
      defer { bytes.removeFirst(4 + count) }
      return Array(bytes[4..<4 + count])
    }
    var next: [UInt8]?
    _ = try eventually {
      if let some = try file.read(count: 65536) { bytes += some }
      next = frame()
      return next != nil
    }
    return next
  }

  /// Whether the machine has closed the connection.
  var isClosed: Bool { (try? file.read(count: 1)) == [] }
}

/// An Ethernet frame with a payload of ascending bytes.
func ethernetFrame(to destination: [UInt8], _ number: Int, payload: Int = 46) -> [UInt8] {
  destination + [0x02, 0, 0, 0, 0, UInt8(number & 0xff)] + [0x08, 0x00]
    + (0..<payload).map { UInt8(truncatingIfNeeded: $0 &+ number) }
}
