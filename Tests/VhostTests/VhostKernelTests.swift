import Glibc
import Linux
import TestSupport
import Testing
import Vhost
import VhostSupport

/// Moves frames between rings in guest memory and a tap interface, through the kernel's vhost-net. Runs only where the
/// process may use /dev/vhost-net and create interfaces, as in the lab.
@Suite(.serialized, .timeLimit(.minutes(2))) struct VhostKernelTests {
  /// VIRTIO_NET_F_MRG_RXBUF and VIRTIO_F_VERSION_1; VIRTIO_F_ACCESS_PLATFORM
  private static let features: UInt64 = 1 << 15 | 1 << 32
  private static let translation: UInt64 = 1 << 33

  /// A tap interface with a vhost device on the guest's end.
  private final class Setup {
    let memory: GuestMemory
    let wire: TapWire
    let device: VhostNet
    let receive: TestRing
    let send: TestRing
    private let offset: UInt64

    init(offset: UInt64 = 0) throws {
      self.offset = offset
      memory = try GuestMemory(size: 4 << 20, lowLimit: 4 << 20)
      wire = try TapWire()
      device = try VhostNet()
      receive = try TestRing(memory, at: 0x10_0000, offset: offset)
      send = try TestRing(memory, at: 0x20_0000, offset: offset)
      try device.setMemory(memory)
      try device.setFeatures(VhostKernelTests.features | (offset == 0 ? 0 : VhostKernelTests.translation))
    }

    func start() throws {
      if offset != 0 {
        for ring in [receive, send] { try map(ring.usedRing + offset, isWritable: true) }
      }
      for (number, ring) in [(0, receive), (1, send)] as [(UInt32, TestRing)] {
        try device.start(ring.ring(number))
        try device.connect(number, to: wire.tap.rawValue)
      }
    }

    /// Sends a frame of the test from a buffer.
    func transmit(_ index: UInt16, _ byte: UInt8) {
      send.fill(index, [UInt8](repeating: 0, count: 12) + VhostKernelTests.frame(byte))
      send.submit(index, count: 12 + 64, isWritable: false)
    }

    /// Whether a frame with the byte is on the wire before the others of the test.
    func hasFrame(_ byte: UInt8) throws -> Bool {
      while let frame = try wire.receive() {
        if frame.count == 64, frame[12] == 0x88, frame[13] == 0xb5 { return frame[14] == byte }
      }
      return false
    }

    func inject(_ byte: UInt8) throws { try wire.send(VhostKernelTests.frame(byte)) }

    /// Gives the kernel the translation of one page.
    func map(_ address: UInt64, isWritable: Bool) throws {
      let page = address & ~0xfff
      try device.add(
        .init(
          address: page, size: 4096, hostAddress: memory.hostAddress(of: memory.regions[0]) + page - offset,
          isReadable: true, isWritable: isWritable))
    }

    /// Answers misses, each with one page.
    /// - Returns: their addresses.
    func answer() throws -> [UInt64] {
      var addresses: [UInt64] = []
      while let miss = try device.takeMiss() {
        addresses.append(miss.address)
        try map(miss.address, isWritable: true)
      }
      return addresses
    }
  }

  /// An Ethernet frame to all, of a type for experiments.
  private static func frame(_ byte: UInt8) -> [UInt8] {
    [UInt8](repeating: 0xff, count: 6) + [2, 0, 0, 0, 0, 1, 0x88, 0xb5] + [UInt8](repeating: byte, count: 50)
  }

  @Test(.enabled(if: TapWire.canUseVhost, "no /dev/vhost-net, or no right to use it"))
  func `frames go both ways, and the rings continue where they stopped`() throws {
    let setup = try Setup()
    for index in 0..<TestRing.size { setup.receive.submit(index, count: 2048, isWritable: true) }
    try setup.start()
    setup.transmit(0, 7)
    #expect(try eventually { try setup.hasFrame(7) })
    #expect(eventually { setup.send.used == 1 && setup.send.takeCall() })
    try setup.inject(9)
    #expect(
      eventually {
        (0..<setup.receive.used).contains { setup.receive.received($0).dropFirst(12).elementsEqual(Self.frame(9)) }
      })
    #expect(setup.receive.takeCall())

    #expect(try setup.device.stop(1) == 1)
    setup.transmit(1, 8)
    usleep(50_000)
    #expect(try !setup.hasFrame(8) && setup.send.used == 1)
    try setup.device.start(setup.send.ring(1, start: 1))
    try setup.device.connect(1, to: setup.wire.tap.rawValue)
    #expect(try eventually { try setup.hasFrame(8) })
    #expect(setup.send.used == 2)
    #expect(!setup.send.takeError())
  }

  @Test(.enabled(if: TapWire.canUseVhost, "no /dev/vhost-net, or no right to use it"))
  func `an invalid descriptor signals the error eventfd`() throws {
    let setup = try Setup()
    try setup.start()
    setup.send.fill(0, [])
    // The buffer is device-writable, which is wrong in a transmit queue.
    setup.send.submit(0, count: 76, isWritable: true)
    #expect(eventually { setup.send.takeError() })
  }

  @Test(.enabled(if: TapWire.canUseVhost, "no /dev/vhost-net, or no right to use it"))
  func `the kernel asks for each translation, and holds none after its invalidation`() throws {
    let offset: UInt64 = 0x7_0000_0000
    let setup = try Setup(offset: offset)
    try setup.start()
    var misses: [UInt64] = []
    setup.transmit(0, 7)
    #expect(
      try eventually {
        misses += try setup.answer()
        return try setup.hasFrame(7)
      })
    let buffer = setup.send.buffer(0) + offset
    #expect(misses.contains { $0 & ~0xfff == buffer & ~0xfff })
    setup.transmit(0, 8)
    #expect(try eventually { try setup.hasFrame(8) }, "no miss: the kernel keeps translations")

    try setup.device.invalidate(buffer & ~0xfff, size: 4096)
    setup.transmit(0, 9)
    var next: VhostNet.Miss?
    #expect(
      try eventually {
        // The queue may have another miss of before the invalidation.
        next = try setup.device.takeMiss()
        return next?.address == buffer
      })
    #expect(next?.reads == true && next?.writes == false)
    #expect(try !setup.hasFrame(9) && setup.send.used == 2)
    try setup.map(buffer, isWritable: false)
    #expect(try eventually { try setup.hasFrame(9) })
  }

  @Test(.enabled(if: TapWire.canUseVhost, "no /dev/vhost-net, or no right to use it"))
  func `the kernel forgets misses and translations, and asks again`() throws {
    let offset: UInt64 = 0x7_0000_0000
    let setup = try Setup(offset: offset)
    try setup.start()
    setup.transmit(0, 7)
    #expect(
      try eventually {
        _ = try setup.answer()
        return try setup.hasFrame(7)
      })
    let buffer = setup.send.buffer(1) + offset
    try setup.device.invalidate(buffer & ~0xfff, size: 4096)
    setup.transmit(1, 8)
    #expect(try eventually { try setup.device.takeMiss()?.address == buffer })
    try setup.device.connect(1, to: nil)
    try setup.device.forgetMisses()
    try setup.map(setup.send.usedRing + offset, isWritable: true)
    try setup.device.connect(1, to: setup.wire.tap.rawValue)
    setup.send.kick.signal()
    var misses: [UInt64] = []
    #expect(
      try eventually {
        misses += try setup.answer()
        return try setup.hasFrame(8)
      })
    #expect(misses.contains(buffer) && !setup.send.takeError())
  }
}
