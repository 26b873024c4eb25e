import Devices
import Hardware

/// The steps of the driver and of the host. The input can make a part of each step wrong.
struct FuzzNetworkDriver {
  let subject: NetworkUnderTest

  /// Initializes the device as a driver does, with features and rings that the input selects.
  func start(_ input: inout FuzzInput) {
    subject.setCommand(6)
    var features = subject.offered
    switch input.choice(4) {
    case 0: features &= ~(1 << 29)
    case 1: features &= 1 << 32 | input.little(8)
    case 2: features &= ~(1 << (UInt64(input.byte()) & 63))
    default: break
    }
    subject.negotiate(features)
    let form = input.byte()
    for queue in 0..<subject.queueCount {
      let page = NetworkUnderTest.rings(queue)
      if form & 1 == 0 {
        subject.memory.store([UInt8](repeating: 0, count: 4), at: page + 0x1000)
        subject.memory.store([UInt8](repeating: 0, count: 4), at: page + 0x2000)
      }
      let size: UInt64 = form & 2 == 0 ? 8 : form & 4 == 0 ? 256 : 2
      let used = form & 8 == 0 ? page + 0x2000 : input.address()
      subject.enable(queue, size: size, table: page, available: page + 0x1000, used: used)
    }
    subject.start()
  }

  private func ring(_ queue: Int) -> FuzzRing? {
    subject.watch.rings(of: queue).map { FuzzRing(memory: subject.memory, rings: $0) }
  }

  private func queue(_ input: inout FuzzInput) -> Int { input.choice(subject.queueCount) }

  private func address(_ input: inout FuzzInput) -> UInt64 { input.address() &+ UInt64(input.byte() & 0x3f) }

  private func length(_ input: inout FuzzInput) -> UInt64 {
    switch input.choice(16) {
    case 0: 0
    case 1: 1
    case 2: 2
    case 3: 10
    case 4: 11
    case 5: 12
    case 6: 13
    case 7: 26
    case 8: 1514
    case 9: 4096
    case 10: 65550
    case 11: 65577
    case 12: input.little(4)
    case 13: UInt64(input.word())
    default: UInt64(input.byte())
    }
  }

  private func finish(_ queue: Int, _ input: inout FuzzInput) {
    let form = input.byte()
    if form & 1 == 0 { subject.notify(queue) }
    if form & 2 == 0 { subject.run() }
  }

  /// Makes a chain of any buffers available on any queue.
  func offerChain(_ input: inout FuzzInput) {
    let queue = queue(&input)
    let form = input.byte()
    let count = 1 + Int(form & 7)
    var buffers: [FuzzRing.Buffer] = []
    for index in 0..<count {
      let isWritable =
        switch form >> 6 {
        case 0: queue % 2 == 0
        case 1: index > 0
        case 2: index + 1 == count
        default: input.choice(2) == 0
        }
      buffers.append(.init(address: address(&input), count: length(&input), isWritable: isWritable))
    }
    ring(queue)?.offer(
      buffers, first: UInt64(input.byte() & 7), table: form & 8 == 0 ? nil : input.address() &+ 0x800)
    finish(queue, &input)
  }

  /// Returns the 12 bytes of a header.
  private func header(_ input: inout FuzzInput) -> [UInt8] {
    var header = NetworkHeader()
    switch input.choice(4) {
    case 0: break
    case 1: return (0..<12).map { _ in input.byte() }
    default:
      header.flags = NetworkHeader.Flags(rawValue: input.pick([0, 1, 1, 1, 2, 3, 0xff]))
      header.segmentation = input.pick([0, 1, 3, 4, 5, 0x81, 0x83, 0x84, 0x85, 2, 0xff])
      header.headerLength = input.choice(2) == 0 ? UInt16(input.byte()) : input.word()
      header.segmentSize = input.choice(2) == 0 ? UInt16(input.byte()) : input.word()
      header.checksumStart = input.choice(2) == 0 ? UInt16(input.byte()) : input.word()
      header.checksumOffset = input.choice(4) == 0 ? input.word() : UInt16(input.byte() & 0x1f)
      header.bufferCount = UInt16(input.byte())
    }
    return (0..<12).map { header.bytes[$0] }
  }

  /// Makes a packet available, with a header that may be wrong, in any framing.
  func sendPacket(_ input: inout FuzzInput) {
    let queue = 2 * input.choice(subject.net.pairCount) + 1
    let start = address(&input)
    subject.memory.store(header(&input), at: start)
    let size = 12 &+ length(&input)
    var buffers: [FuzzRing.Buffer] = []
    var at: UInt64 = 0
    let pieces = input.choice(4)
    for _ in 0..<pieces {
      let part = UInt64(input.byte() & 0x1f)
      guard at + part < size else { break }
      buffers.append(.init(address: start &+ at, count: part))
      at += part
    }
    buffers.append(.init(address: input.choice(4) == 0 ? address(&input) : start &+ at, count: size &- at))
    ring(queue)?.offer(buffers, first: UInt64(input.byte() & 7))
    finish(queue, &input)
  }

  /// Makes several receive buffers of one size available.
  func supplyBuffers(_ input: inout FuzzInput) {
    let queue = 2 * input.choice(subject.net.pairCount)
    let size = input.choice(2) == 0 ? 1536 : length(&input)
    let start = address(&input)
    for index in 0..<UInt64(1 + input.choice(8)) {
      ring(queue)?.offer([.init(address: start &+ index &* size, count: size, isWritable: true)], first: index)
    }
    finish(queue, &input)
  }

  /// Lets a packet arrive from the network.
  func deliver(_ input: inout FuzzInput) {
    let pair = input.choice(subject.network.capabilities.pairs)
    var packet = header(&input)
    let destinations: [[UInt8]] = [
      subject.net.address.bytes, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff], [0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9],
    ]
    packet += input.pick(destinations) + [2, 0, 0, 0, 0, 1]
    packet += input.choice(2) == 0 ? [8, 0] : [0x81, 0, input.byte(), input.byte()]
    let size = Int(min(length(&input), 65589))
    while packet.count < 12 + size { packet.append(UInt8(truncatingIfNeeded: packet.count)) }
    // Sometimes shorter than an Ethernet header, or than the header before it.
    if input.choice(8) == 0 { packet = Array(packet.prefix(max(1, Int(input.byte() & 31)))) }
    subject.network.queue(packet, pair: pair)
    if input.choice(4) != 0 {
      subject.network.wakeDevice()
      subject.run()
    }
  }

  /// Sends a command: class, command, data.
  func command(_ input: inout FuzzInput) {
    let queue = 2 * subject.net.pairCount
    let form = input.byte()
    let start = address(&input)
    var bytes = [input.byte() % 7, input.byte() % 7]
    switch form & 7 {
    case 0: bytes += [0, input.byte() & 1]
    case 1: bytes.append(input.byte())
    case 2: bytes += (0..<6).map { _ in input.byte() }
    case 3: bytes += (0..<8).map { _ in input.byte() }
    case 4: bytes += [input.byte(), input.byte()]
    case 5:
      // Two tables of addresses. Their numbers of entries may be wrong.
      for _ in 0..<2 {
        let count = input.byte() & 0x4f
        bytes += [count, 0, 0, input.choice(8) == 0 ? input.byte() : 0]
        bytes += (0..<6 * Int(count & 7)).map { UInt8(truncatingIfNeeded: $0) & 0xfe }
      }
    default: bytes += (0..<input.choice(40)).map { _ in input.byte() }
    }
    subject.memory.store(bytes, at: start)
    var buffers: [FuzzRing.Buffer] = []
    if form & 8 != 0 { buffers.append(.init(address: start, count: 1)) }
    let rest = UInt64(form & 8 == 0 ? 0 : 1)
    buffers.append(
      .init(address: start &+ rest, count: form & 0x70 == 0x70 ? length(&input) : UInt64(bytes.count) - rest))
    let answers = UInt64(form & 0x60 == 0x20 ? 0 : 1)
    buffers.append(.init(address: start &+ 0x800, count: answers, isWritable: true))
    ring(queue)?.offer(buffers, first: UInt64(input.byte() & 7), table: form & 0x80 == 0 ? nil : 0x4000)
    finish(queue, &input)
  }

  func notify(_ input: inout FuzzInput) {
    subject.notify(input.choice(subject.queueCount + 1))
    if input.choice(4) != 0 { subject.run() }
  }

  func writeMemory(_ input: inout FuzzInput) {
    let address = input.choice(2) == 0 ? address(&input) : NetworkUnderTest.rings(queue(&input)) + UInt64(input.word())
    subject.memory.store((0..<1 + input.choice(8)).map { _ in input.byte() }, at: address)
  }

  /// Writes one field of the common configuration, or anything to the device's structures.
  func writeField(_ input: inout FuzzInput) {
    let fields: [(UInt64, AccessWidth)] = [
      (0x00, .doubleword), (0x08, .doubleword), (0x0c, .doubleword), (0x10, .word), (0x14, .byte), (0x16, .word),
      (0x18, .word), (0x1a, .word), (0x1c, .word), (0x20, .quadword), (0x28, .quadword), (0x30, .quadword),
      (0x3a, .word),
    ]
    if input.choice(4) == 0 {
      subject.write(UInt64(input.word() & 0x3fff), input.width(), input.value())
    } else {
      let (offset, width) = input.pick(fields)
      subject.write(offset, width, input.value())
    }
    // The features are then unknown: the device type's limits still hold.
    subject.network.setFeatures(nil)
    subject.followRings()
  }

  /// The monitor, the link, and a network without room.
  func useHost(_ input: inout FuzzInput) {
    switch input.choice(8) {
    case 0: subject.net.setLink(up: input.choice(2) == 0)
    case 1: subject.network.setLink(up: input.choice(2) == 0)
    case 2: _ = subject.net.announce()
    case 3: subject.network.setResult(.full)
    case 4: subject.network.setResult(.dropped)
    case 5: subject.network.setResult(.sent)
    default: subject.network.wakeDevice()
    }
    if input.choice(2) == 0 { subject.run() }
  }

  /// Clears Bus Master Enable now or at an access of the device, or sets it again.
  func setBusMaster(_ input: inout FuzzInput) {
    switch input.choice(4) {
    case 0: subject.setCommand(2)
    case 1: subject.stopBusMaster(after: Int(input.byte()))
    default: subject.setCommand(6)
    }
    if input.choice(2) == 0 { subject.run() }
  }

  func resetQueue(_ input: inout FuzzInput) {
    subject.write(0x16, .word, UInt64(queue(&input)))
    subject.write(0x3a, .word, 1)
    subject.followRings()
  }

  func readDevice(_ input: inout FuzzInput) {
    _ = subject.read(0x2000 + UInt64(input.byte() & 0x1f), input.width())
    subject.write(0x2000 + UInt64(input.byte() & 0x1f), input.width(), input.value())
  }
}
