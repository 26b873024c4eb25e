import CLinux
import Glibc

/// One queue of a tap interface of the host: Ethernet frames to and from the host's network, each with virtio's header
/// of 12 bytes (Documentation/networking/tuntap.rst; <linux/if_tun.h>; `struct virtio_net_hdr_mrg_rxbuf`).
///
/// The file is non-blocking: a loop waits until it is readable or writable. Each queue has its own file, which may be
/// used on any thread.
public final class TapInterface: Sendable {
  /// What the guest's driver accepts in frames that the host sends: TUN_F_*.
  public struct Offloads: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Frames without a checksum. All others need it.
    public static let checksum = Offloads(rawValue: UInt32(TUN_F_CSUM))
    public static let tso4 = Offloads(rawValue: UInt32(TUN_F_TSO4))
    public static let tso6 = Offloads(rawValue: UInt32(TUN_F_TSO6))
    /// TCP segmentation with congestion notification.
    public static let tsoECN = Offloads(rawValue: UInt32(TUN_F_TSO_ECN))
    public static let ufo = Offloads(rawValue: UInt32(TUN_F_UFO))
    public static let uso4 = Offloads(rawValue: UInt32(TUN_F_USO4))
    public static let uso6 = Offloads(rawValue: UInt32(TUN_F_USO6))
  }

  public enum Problem: Error, Hashable, Sendable {
    /// The host has no tun device: its file is missing, or the kernel lacks the driver.
    case noDevice(SystemError)
    /// The process may not use the device file, or may not create the interface or attach to it.
    case notPermitted(SystemError)
    /// Another process uses the interface, or all of its queues.
    case busy(name: String)
    /// The kernel's tap interfaces have only one queue.
    case noMultiQueue
    /// The interface exists already, and it is not a tap interface, or it has several queues where one was asked for,
    /// or one where several were asked for.
    case mismatch(name: String)
    /// A name that no interface can have.
    case badName(String)
    /// The open file that another program passed is not a tap interface.
    case notATap
    /// The open file is a tap interface without virtio's header (IFF_VNET_HDR), or with a packet's protocol before each
    /// frame (no IFF_NO_PI).
    case wrongFormat(name: String)
    case failed(SystemError)
  }

  /// IFNAMSIZ without the final zero.
  public static let longestName = 15
  /// In bytes.
  public static let headerSize = 12
  public static let devicePath = "/dev/net/tun"

  public let name: String
  /// Whether the interface can have several queues.
  public let isMultiQueue: Bool
  /// The offloads that the kernel knows.
  public let knownOffloads: Offloads
  private let file: FileDescriptor

  /// Creates the interface or attaches to it. Each further queue of an interface is one more object of the same name.
  /// - Parameters:
  ///   - name: may contain `%d`, for a number that the kernel chooses; nil for `tap%d`.
  ///   - multiQueue: whether the interface can have several queues.
  ///   - path: the tun device.
  public convenience init(
    named name: String? = nil, multiQueue: Bool = false, device path: String = TapInterface.devicePath
  ) throws(Problem) {
    let name = name ?? "tap%d"
    guard !name.isEmpty, name.utf8.count <= Self.longestName, !name.utf8.contains(0) else { throw .badName(name) }
    let file: FileDescriptor
    do {
      file = try FileDescriptor(opening: path, O_RDWR | O_NONBLOCK)
    } catch {
      switch error.code {
      case ENOENT, ENODEV, ENXIO: throw .noDevice(error)
      case EACCES, EPERM: throw .notPermitted(error)
      default: throw .failed(error)
      }
    }
    var features: UInt32 = 0
    // SAFETY: TUNGETFEATURES stores an unsigned int.
    let answer = unsafe nestling_ioctl(file.rawValue, TUNGETFEATURES, &features)
    if answer < 0 { throw .failed(SystemError("TUNGETFEATURES", path, code: -answer)) }
    if multiQueue, features & UInt32(IFF_MULTI_QUEUE) == 0 { throw .noMultiQueue }
    let flags = UInt32(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multiQueue ? IFF_MULTI_QUEUE : 0))
    let attached: (String, UInt32)
    do {
      attached = try Self.request(TUNSETIFF, "TUNSETIFF", file, name, flags)
    } catch {
      switch error.code {
      case EBUSY, E2BIG: throw .busy(name: name)
      case EPERM, EACCES: throw .notPermitted(error)
      // drivers/net/tun.c, tun_set_iff. SAFETY: the name lives for the duration of the call.
      case EINVAL: throw unsafe if_nametoindex(name) != 0 ? .mismatch(name: name) : .badName(name)
      default: throw .failed(error)
      }
    }
    try self.init(file, name: attached.0, isMultiQueue: multiQueue)
  }

  /// Takes an interface that another program has opened and attached.
  /// - Parameter open: becomes non-blocking, also for the other program.
  public convenience init(_ open: PassedDescriptor) throws(Problem) {
    let file: FileDescriptor
    let (name, flags): (String, UInt32)
    do {
      file = try FileDescriptor(duplicating: open.rawValue)
    } catch {
      throw .failed(error)
    }
    do {
      (name, flags) = try Self.request(TUNGETIFF, "TUNGETIFF", file, "", 0)
    } catch {
      throw .notATap
    }
    guard flags & UInt32(IFF_TAP) != 0 else { throw .notATap }
    let format = UInt32(IFF_NO_PI | IFF_VNET_HDR)
    guard flags & format == format else { throw .wrongFormat(name: name) }
    file.makeNonBlocking()
    try self.init(file, name: name, isMultiQueue: flags & UInt32(IFF_MULTI_QUEUE) != 0)
  }

  private init(_ file: consuming FileDescriptor, name: String, isMultiQueue: Bool) throws(Problem) {
    do {
      var size = Int32(Self.headerSize)
      // SAFETY: both requests read an int.
      _ = try checked(unsafe nestling_ioctl(file.rawValue, TUNSETVNETHDRSZ, &size), "TUNSETVNETHDRSZ", name)
      // As QEMU: no limit on the frames that wait in the host's network. A kernel that refuses keeps its own limit.
      var limit = Int32.max
      _ = unsafe nestling_ioctl(file.rawValue, TUNSETSNDBUF, &limit)
    } catch {
      throw .failed(error)
    }
    let segmentation: Offloads = [.checksum, .tso4, .tso6, .tsoECN]
    let candidates: [Offloads] = [
      segmentation.union([.ufo, .uso4, .uso6]), segmentation.union([.uso4, .uso6]), segmentation.union(.ufo),
      segmentation, .checksum,
    ]
    let descriptor = file.rawValue
    knownOffloads = candidates.first { Self.set($0, descriptor) >= 0 } ?? []
    _ = Self.set([], descriptor)
    self.name = name
    self.isMultiQueue = isMultiQueue
    self.file = file
  }

  /// For the registration with a loop.
  public var rawValue: Int32 { file.rawValue }

  /// Sets the offloads that frames from the host may use from now on. This acts on all queues of the interface.
  public func setOffloads(_ offloads: Offloads) throws(SystemError) {
    _ = try checked(Self.set(offloads, file.rawValue), "TUNSETOFFLOAD", name)
  }

  private static func set(_ offloads: Offloads, _ descriptor: Int32) -> Int32 {
    nestling_ioctl_value(descriptor, TUNSETOFFLOAD, UInt(offloads.rawValue))
  }

  /// Attaches the queue to its interface, or detaches it, so that the host sends it no frames. Only for an interface
  /// with several queues.
  public func setEnabled(_ isEnabled: Bool) throws(SystemError) {
    _ = try Self.request(
      TUNSETQUEUE, "TUNSETQUEUE", file, "", UInt32(isEnabled ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE))
  }

  /// Reads one frame with its header into guest memory. What does not fit is lost.
  /// - Parameter segments: at most IOV_MAX.
  /// - Returns: the number of bytes; nil if no frame waits.
  public func read(into segments: [ScatteredFile.Segment], of memory: GuestMemory) throws(SystemError) -> Int? {
    try unsafe transfer(segments, memory, "readv") { unsafe readv($0, $1, $2) }
  }

  /// Writes one frame with its header from guest memory. The kernel checks the header.
  /// - Parameter segments: at most IOV_MAX.
  /// - Returns: false if the host's network has no room now. EINVAL is thrown for a bad header or a frame that is too
  ///   short, EIO for an interface that is down.
  public func write(from segments: [ScatteredFile.Segment], of memory: GuestMemory) throws(SystemError) -> Bool {
    try unsafe transfer(segments, memory, "writev") { unsafe writev($0, $1, $2) } != nil
  }

  private func transfer(
    _ segments: [ScatteredFile.Segment], _ memory: GuestMemory, _ name: String,
    _ call: (Int32, UnsafePointer<iovec>, Int32) -> Int
  ) throws(SystemError) -> Int? {
    while true {
      let moved = try unsafe memory.withVectors(of: segments[...], name) {
        let moved = unsafe call(file.rawValue, $0, $1)
        return moved < 0 ? -Int(errno) : moved
      }
      if moved >= 0 { return moved }
      if moved == -Int(EAGAIN) { return nil }
      if moved != -Int(EINTR) { throw SystemError(name, self.name, code: Int32(-moved)) }
    }
  }

  /// - Returns: the name and the flags that the kernel stored.
  private static func request(
    _ number: UInt32, _ call: String, _ file: borrowing FileDescriptor, _ name: String, _ flags: UInt32
  ) throws(SystemError) -> (String, UInt32) {
    var bytes = [CChar](repeating: 0, count: longestName + 1)
    for (index, byte) in name.utf8.prefix(longestName).enumerated() { bytes[index] = CChar(bitPattern: byte) }
    var flags = flags
    // SAFETY: the name has the 16 bytes that the call needs.
    let answer = unsafe nestling_interface_request(file.rawValue, number, &bytes, &flags)
    _ = try checked(answer, call, name)
    let known = bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
    return (String(decoding: known, as: UTF8.self), flags)
  }
}
