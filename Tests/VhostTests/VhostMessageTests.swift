import Glibc
import Linux
import Testing

@testable import Vhost

/// Tests what goes through a vhost file without a kernel that has vhost-net.
@Suite struct VhostMessageTests {
  /// One end of a connection that keeps the boundaries of messages, in place of vhost's file.
  private final class Kernel {
    let own: FileDescriptor
    let device: VhostNet

    init() throws {
      var ends: [Int32] = [0, 0]
      try #require(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
      own = FileDescriptor(owning: ends[0])
      own.makeNonBlocking()
      device = VhostNet(untested: PassedDescriptor(FileDescriptor(owning: ends[1])))
    }

    func take() throws -> [UInt8]? { try own.read(count: 256) }
  }

  /// Returns struct vhost_msg_v2.
  private static func message(
    type: UInt8, address: UInt64 = 0, size: UInt64 = 0, host: UInt64 = 0, rights: UInt8 = 0
  ) -> [UInt8] {
    func bytes(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    let body = bytes(address) + bytes(size) + bytes(host) + [rights, type]
    return [2, 0, 0, 0, 0, 0, 0, 0] + body + [UInt8](repeating: 0, count: 64 - body.count)
  }

  @Test func `a translation and an invalidation are messages of 72 bytes`() throws {
    let kernel = try Kernel()
    try kernel.device.add(
      .init(
        address: 0x1122_3344_5566_7000, size: 0x2000, hostAddress: 0x7fff_1234_5000, isReadable: true,
        isWritable: false))
    var expected = Self.message(
      type: 2, address: 0x1122_3344_5566_7000, size: 0x2000, host: 0x7fff_1234_5000, rights: 1)
    #expect(expected.count == 72)
    #expect(try kernel.take() == expected)
    try kernel.device.add(.init(address: 0, size: 0x1000, hostAddress: 0, isReadable: true, isWritable: true))
    #expect(try kernel.take()?[32] == 3)
    try kernel.device.add(.init(address: 0, size: 0x1000, hostAddress: 0, isReadable: false, isWritable: true))
    #expect(try kernel.take()?[32] == 2)
    try kernel.device.invalidate(0xffff_f000, size: 0x1000)
    expected = Self.message(type: 3, address: 0xffff_f000, size: 0x1000)
    #expect(try kernel.take() == expected)
  }

  @Test func `a miss has an address and the rights that the kernel needs`() throws {
    let kernel = try Kernel()
    #expect(try kernel.device.takeMiss() == nil)
    try kernel.own.write(Self.message(type: 1, address: 0xfff0_0000_1000, rights: 1))
    try kernel.own.write(Self.message(type: 1, address: .max, rights: 2))
    #expect(try kernel.device.takeMiss() == .init(address: 0xfff0_0000_1000, reads: true, writes: false))
    #expect(try kernel.device.takeMiss() == .init(address: .max, reads: false, writes: true))
    #expect(try kernel.device.takeMiss() == nil)
  }

  @Test func `messages of other kinds are skipped`() throws {
    let kernel = try Kernel()
    try kernel.own.write(Self.message(type: 4, address: 0x1000, rights: 1))
    var old = Self.message(type: 1, address: 0x2000, rights: 1)
    old[0] = 1
    try kernel.own.write(old)
    try kernel.own.write(Self.message(type: 1, address: 0x3000, rights: 3))
    #expect(try kernel.device.takeMiss() == .init(address: 0x3000, reads: true, writes: true))
    #expect(try kernel.device.takeMiss() == nil)
  }

  @Test func `a device that is gone is an error of the call`() throws {
    var kernel: Kernel? = try Kernel()
    let device = try #require(kernel?.device)
    kernel = nil
    signal(SIGPIPE, SIG_IGN)
    #expect(throws: SystemError("write", "vhost-net", code: EPIPE)) { try device.invalidate(0, size: 0x1000) }
  }

  @Test func `the memory table has one entry for each region of RAM`() throws {
    let memory = try GuestMemory(size: 6 << 20, lowLimit: 4 << 20)
    let bytes = VhostNet.Table(memory).bytes
    #expect(bytes.count == 8 + 2 * 32)
    func value(_ at: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(bytes[at + $1]) << (8 * $1) } }
    let first = memory.hostAddress(of: memory.regions[0])
    #expect(value(0) == 2)
    #expect([8, 16, 24, 32].map(value) == [0, 4 << 20, first, 0])
    #expect([40, 48, 56, 64].map(value) == [1 << 32, 2 << 20, first + 4 << 20, 0])
  }

  // MARK: Opening

  @Test func `a missing device file and a missing right are told apart`() throws {
    do {
      _ = try VhostNet(device: "/nonexistent/vhost-net")
      Issue.record("opened")
    } catch {
      #expect(error == .noDevice(SystemError("open", "/nonexistent/vhost-net", code: ENOENT)))
    }
    do {
      // No device file can be opened for writing there, by anybody.
      _ = try VhostNet(device: "/proc/version")
      Issue.record("opened")
    } catch {
      #expect(error == .notPermitted(SystemError("open", "/proc/version", code: EACCES)) || error == .notVhost)
    }
  }

  @Test func `a passed file that is not vhost-net's is refused`() throws {
    let file = PassedDescriptor(try FileDescriptor(opening: "/dev/null", O_RDWR))
    #expect(throws: VhostNet.Problem.notVhost) { try VhostNet(file) }
  }

  // MARK: Rings

  @Test func `a ring is used only if all of its areas are in RAM and aligned`() throws {
    let memory = try GuestMemory(size: 6 << 20, lowLimit: 4 << 20)
    func ring(_ size: UInt16, _ descriptors: UInt64, _ available: UInt64, _ used: UInt64) -> HostRing? {
      HostRing(size: size, descriptors: descriptors, available: available, used: used, in: memory)
    }
    let low = memory.hostAddress(of: memory.regions[0])
    let ring256 = try #require(ring(256, 0x1000, 0x2000, (1 << 32) + 0x3000))
    #expect(ring256.descriptors == low + 0x1000 && ring256.available == low + 0x2000)
    #expect(ring256.used == low + 4 << 20 + 0x3000)
    let end: UInt64 = 4 << 20
    #expect(ring(256, end - 4096, end - 518, end - 2056) != nil)
    // Each area ends one unit of its alignment past RAM.
    #expect(ring(256, end - 4080, 0, 0) == nil)
    #expect(ring(256, 0, end - 516, 0) == nil)
    #expect(ring(256, 0, 0, end - 2052) == nil)
    #expect(ring(256, 8, 0, 0) == nil)
    #expect(ring(256, 0, 1, 0) == nil)
    #expect(ring(256, 0, 0, 2) == nil)
    #expect(ring(32768, .max & ~15, 0, 0) == nil)
    #expect(ring(256, 1 << 40, 0, 0) == nil)
  }
}
