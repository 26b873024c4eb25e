import CLinux
import Glibc
import Synchronization
import TestSupport
import Testing

@testable import Linux

/// Exchanges frames with the kernel's own tap driver, in a network namespace of the test's thread. The other end is a
/// packet socket (packet(7)) on the same interface.
@Suite(.timeLimit(.minutes(2))) struct TapInterfaceTests {
  private static let isPossible: Bool = {
    let result = inNamespace { access(TapInterface.devicePath, R_OK | W_OK) == 0 }
    return result == true
  }()

  /// Runs a test in a new network namespace, which only its thread has.
  /// - Returns: nil if the host allows no namespace.
  private static func inNamespace<Result: Sendable>(
    _ body: @escaping @Sendable () throws -> Result
  ) rethrows -> Result? {
    let result = Mutex<Swift.Result<Result, any Error>?>(nil)
    let box = Place(result)
    let thread = try? Thread(name: "namespace") {
      guard leaveNamespace() else { return }
      box.value.withLock { $0 = Swift.Result { try body() } }
    }
    thread?.join()
    switch box.value.withLock({ $0 }) {
    case nil: return nil
    case .success(let value)?: return value
    case .failure(let error)?:
      Issue.record(error)
      return nil
    }
  }

  /// Calls unshare(2) with CLONE_NEWNET. Glibc's module does not have the function.
  private static func leaveNamespace() -> Bool {
    guard let function = dlsym(nil, "unshare") else { return false }
    return unsafeBitCast(function, to: (@convention(c) (Int32) -> Int32).self)(0x4000_0000) == 0
  }

  private final class Place<Value: Sendable>: Sendable {
    let value: Mutex<Value>
    init(_ value: consuming Mutex<Value>) { self.value = value }
  }

  private static func problem(_ open: () throws(TapInterface.Problem) -> TapInterface) -> TapInterface.Problem? {
    do throws(TapInterface.Problem) {
      _ = try open()
      return nil
    } catch {
      return error
    }
  }

  /// The host's end of an interface.
  private final class HostEnd {
    private let socket: FileDescriptor

    /// Sets the interface up (SIOCSIFFLAGS), and receives all of its frames.
    init(_ name: String) throws {
      // ETH_P_ALL; 17 is AF_PACKET.
      let all = UInt16(0x0003).bigEndian
      socket = FileDescriptor(owning: Glibc.socket(17, Int32(SOCK_RAW.rawValue), Int32(all)))
      try #require(socket.rawValue >= 0)
      var bytes = [CChar](repeating: 0, count: 16)
      for (index, byte) in name.utf8.enumerated() { bytes[index] = CChar(bitPattern: byte) }
      var flags: UInt32 = 1
      try #require(nestling_interface_request(socket.rawValue, 0x8914, &bytes, &flags) == 0)
      // struct sockaddr_ll: family, protocol, index, and 12 bytes that bind(2) does not read.
      var address = [UInt8](repeating: 0, count: 20)
      address.withUnsafeMutableBytes {
        $0.storeBytes(of: 17, as: UInt16.self)
        $0.storeBytes(of: all, toByteOffset: 2, as: UInt16.self)
        $0.storeBytes(of: Int32(if_nametoindex(name)), toByteOffset: 4, as: Int32.self)
      }
      let bound = address.withUnsafeBytes {
        bind(socket.rawValue, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
      }
      try #require(bound == 0)
    }

    func send(_ frame: [UInt8]) throws { try socket.write(frame) }

    /// Returns the next frame that the test has sent: those of the kernel itself have another type.
    func frame() throws -> [UInt8]? {
      while Poll.readable([socket.rawValue], milliseconds: 10_000)[0] {
        if let frame = try socket.read(count: 65536), TapInterfaceTests.isOurs(frame[...]) { return frame }
      }
      return nil
    }
  }

  /// The EtherType for local experiments (IEEE 802).
  private static func frame(_ count: Int, _ seed: UInt8) -> [UInt8] {
    [UInt8](repeating: 0xff, count: 6) + [2, 0, 0, 0, 0, 1, 0x88, 0xb5]
      + (0..<count - 14).map { UInt8(truncatingIfNeeded: $0) &+ seed }
  }
  private static func isOurs(_ frame: ArraySlice<UInt8>) -> Bool { frame.dropFirst(12).prefix(2) == [0x88, 0xb5] }

  private static func makeMemory() throws -> GuestMemory { try GuestMemory(size: 1 << 20, lowLimit: 1 << 20) }

  private static func bytes(_ memory: GuestMemory, _ address: UInt64, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    return memory.read(from: address, into: &raw) ? bytes : []
  }

  /// Reads the next frame that the test has sent into the segments.
  private static func read(
    _ tap: TapInterface, _ segments: [ScatteredFile.Segment], _ memory: GuestMemory
  ) throws -> Int? {
    while Poll.readable([tap.rawValue], milliseconds: 10_000)[0] {
      guard let count = try tap.read(into: segments, of: memory) else { continue }
      if isOurs(bytes(memory, 0x1000, 26).dropFirst(12)) { return count }
    }
    return nil
  }

  @Test("frames pass both ways, with virtio's header, through scattered guest memory", .enabled(if: isPossible))
  func bothWays() throws {
    _ = try Self.inNamespace {
      let tap = try TapInterface()
      #expect(tap.name == "tap0" && !tap.isMultiQueue)
      let memory = try Self.makeMemory()
      let host = try HostEnd(tap.name)
      let sent = Self.frame(1000, 1)
      try host.send(sent)
      // The header, the frame's first part and its rest.
      let into: [ScatteredFile.Segment] = [
        .init(address: 0x1000, count: 26), .init(address: 0x8000, count: 0), .init(address: 0x4000, count: 2000),
      ]
      #expect(try Self.read(tap, into, memory) == 12 + sent.count)
      #expect(Self.bytes(memory, 0x100c, 14) + Self.bytes(memory, 0x4000, sent.count - 14) == sent)

      let back = Self.frame(600, 9)
      let header = [UInt8](repeating: 0, count: 12)
      #expect(memory.write(header.span.bytes, to: 0x1000) && memory.write(back.span.bytes, to: 0x3000))
      let from: [ScatteredFile.Segment] = [
        .init(address: 0x1000, count: 12), .init(address: 0x3000, count: 100), .init(address: 0x3064, count: 500),
      ]
      #expect(try tap.write(from: from, of: memory))
      #expect(try host.frame() == back)
    }
  }

  @Test("without a frame a read returns nil; addresses outside RAM and bad frames are errors", .enabled(if: isPossible))
  func refusedTransfers() throws {
    _ = try Self.inNamespace {
      let tap = try TapInterface(named: "t")
      let memory = try Self.makeMemory()
      let buffer: [ScatteredFile.Segment] = [.init(address: 0x1000, count: 2000)]
      #expect(try tap.read(into: buffer, of: memory) == nil)
      #expect(throws: SystemError("writev", "t", code: EIO)) { try tap.write(from: buffer, of: memory) }
      _ = try HostEnd("t")
      #expect(throws: SystemError("writev", "t", code: EINVAL)) {
        try tap.write(from: [.init(address: 0x1000, count: 20)], of: memory)
      }
      for segment: ScatteredFile.Segment in [
        .init(address: 0xffff0, count: 32), .init(address: .max, count: 1), .init(address: 0, count: -1),
      ] {
        #expect(throws: SystemError("readv", "guest memory", code: EFAULT)) {
          try tap.read(into: buffer + [segment], of: memory)
        }
        #expect(throws: SystemError("writev", "guest memory", code: EFAULT)) {
          try tap.write(from: [segment], of: memory)
        }
      }
    }
  }

  @Test("an interface has one queue, or several that are used together", .enabled(if: isPossible))
  func queues() throws {
    _ = try Self.inNamespace {
      let single = try TapInterface(named: "one")
      #expect(Self.problem { () throws(TapInterface.Problem) in try TapInterface(named: "one") } == .busy(name: "one"))
      #expect(
        Self.problem { () throws(TapInterface.Problem) in try TapInterface(named: "one", multiQueue: true) }
          == .mismatch(name: "one"))
      #expect(
        Self.problem { () throws(TapInterface.Problem) in try TapInterface(named: "lo") } == .mismatch(name: "lo"))
      let first = try TapInterface(named: "many", multiQueue: true)
      let second = try TapInterface(named: "many", multiQueue: true)
      #expect(first.isMultiQueue && second.isMultiQueue && second.name == "many")
      // The host sends nothing to a detached queue.
      try second.setEnabled(false)
      let memory = try Self.makeMemory()
      let host = try HostEnd("many")
      for seed in 0..<20 as Range<UInt8> { try host.send(Self.frame(100, seed)) }
      for _ in 0..<20 { #expect(try Self.read(first, [.init(address: 0x1000, count: 2000)], memory) == 112) }
      #expect(!Poll.readable([second.rawValue], milliseconds: 0)[0])
      // The kernel refuses a write to a detached queue.
      try second.setEnabled(true)
      let frame = Self.frame(100, 77)
      let packet = [UInt8](repeating: 0, count: 12) + frame
      let isStored = memory.write(packet.span.bytes, to: 0x1000)
      #expect(isStored)
      #expect(try second.write(from: [.init(address: 0x1000, count: packet.count)], of: memory))
      #expect(try host.frame() == frame)
      _ = single.rawValue
    }
  }

  @Test("offloads that the kernel knows can be set; others are an error", .enabled(if: isPossible))
  func offloads() throws {
    _ = try Self.inNamespace {
      let tap = try TapInterface()
      #expect(tap.knownOffloads.isSuperset(of: [.checksum, .tso4, .tso6, .tsoECN]))
      try tap.setOffloads(tap.knownOffloads)
      try tap.setOffloads([])
      #expect(throws: SystemError("TUNSETOFFLOAD", tap.name, code: EINVAL)) {
        try tap.setOffloads([.checksum, TapInterface.Offloads(rawValue: 1 << 30)])
      }
    }
  }

  @Test("a passed descriptor is taken with its name, and becomes non-blocking", .enabled(if: isPossible))
  func passed() throws {
    _ = try Self.inNamespace {
      let original = try FileDescriptor(opening: TapInterface.devicePath, O_RDWR)
      var name = Array("given".utf8CString) + [CChar](repeating: 0, count: 10)
      var flags = UInt32(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE)
      #expect(nestling_interface_request(original.rawValue, TUNSETIFF, &name, &flags) == 0)
      let descriptor = original.rawValue
      let tap = try TapInterface(PassedDescriptor(original))
      #expect(tap.name == "given" && tap.isMultiQueue)
      #expect(fcntl(tap.rawValue, F_GETFL) & O_NONBLOCK != 0 && tap.rawValue != descriptor)
      #expect(try tap.read(into: [.init(address: 0, count: 100)], of: Self.makeMemory()) == nil)
    }
  }

  @Test("a passed tap interface without virtio's header is refused", .enabled(if: isPossible))
  func passedWithoutHeader() throws {
    _ = try Self.inNamespace {
      for (flags, expected): (Int, TapInterface.Problem) in [
        (IFF_TAP | IFF_NO_PI, .wrongFormat(name: "given")),
        // IFF_TUN.
        (0x1 | IFF_NO_PI | IFF_VNET_HDR, .notATap),
      ] {
        let original = try FileDescriptor(opening: TapInterface.devicePath, O_RDWR)
        var name = Array("given".utf8CString) + [CChar](repeating: 0, count: 10)
        var flags = UInt32(flags)
        #expect(nestling_interface_request(original.rawValue, TUNSETIFF, &name, &flags) == 0)
        let passed = PassedDescriptor(original)
        #expect(Self.problem { () throws(TapInterface.Problem) in try TapInterface(passed) } == expected)
      }
    }
  }

  @Test("what is not a tap interface is refused, and so is a name that no interface can have")
  func refused() throws {
    let file = PassedDescriptor(try FileDescriptor(opening: "/dev/null", O_RDWR))
    #expect(Self.problem { () throws(TapInterface.Problem) in try TapInterface(file) } == .notATap)
    for name in ["", "sixteen-bytes-xx", "a\0b"] {
      #expect(Self.problem { () throws(TapInterface.Problem) in try TapInterface(named: name) } == .badName(name))
    }
    let folder = TemporaryFolder()
    let missing = folder.file("tun")
    #expect(
      Self.problem { () throws(TapInterface.Problem) in try TapInterface(device: missing) }
        == .noDevice(SystemError("open", missing, code: ENOENT)))
    #expect(
      Self.problem { () throws(TapInterface.Problem) in try TapInterface(device: "/dev/null") }
        == .failed(SystemError("TUNGETFEATURES", "/dev/null", code: ENOTTY)))
  }
}
