import CLinux
import Glibc
import Linux

/// One vhost-net device of the host's kernel: it serves the receive queue (ring 0) and the transmit queue (ring 1) of a
/// network device, and moves the packets to and from one queue of a tap interface (<linux/vhost.h>,
/// drivers/vhost/net.c).
///
/// Without translation, the kernel finds buffers by a table of the guest's RAM. With translation
/// (VIRTIO_F_ACCESS_PLATFORM), it asks for each range of DMA addresses by a message; see `VhostNet+Translation`.
///
/// Any thread may make the calls; the kernel serializes them. Each one waits at most for the work that the kernel has
/// in progress on the rings.
public final class VhostNet: Sendable {
  public enum Problem: Error, Hashable, Sendable {
    /// The host has no vhost-net: its device file is missing, or the kernel lacks the driver.
    case noDevice(SystemError)
    /// The process may not use the device file.
    case notPermitted(SystemError)
    /// The open file that another program passed is not vhost-net's.
    case notVhost
    /// Another process uses the open file.
    case busy
    case failed(SystemError)
  }

  /// A ring as the kernel serves it.
  public struct Ring: Sendable {
    /// 0 for the receive queue, 1 for the transmit queue.
    public var number: UInt32
    /// The number of descriptors.
    public var size: UInt16
    /// The addresses of the descriptor table, the available ring and the used ring: those of `HostRing` without
    /// translation, else DMA addresses.
    public var descriptors: UInt64
    public var available: UInt64
    public var used: UInt64
    /// The index of the first entry of the available ring to serve.
    public var start: UInt16
    /// The eventfds by which the driver notifies the kernel, and the kernel the driver. nil: no interrupt.
    public var kick: Int32
    public var call: Int32?
    /// The eventfd that the kernel signals when it finds an invalid descriptor.
    public var error: Int32

    public init(
      number: UInt32, size: UInt16, descriptors: UInt64, available: UInt64, used: UInt64, start: UInt16, kick: Int32,
      call: Int32?, error: Int32
    ) {
      self.number = number
      self.size = size
      self.descriptors = descriptors
      self.available = available
      self.used = used
      self.start = start
      self.kick = kick
      self.call = call
      self.error = error
    }
  }

  public static let devicePath = "/dev/vhost-net"

  /// The feature bits of virtio that the kernel's rings support.
  public let knownFeatures: UInt64
  private let file: PassedDescriptor

  public convenience init(device path: String = VhostNet.devicePath) throws(Problem) {
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
    try self.init(PassedDescriptor(file))
  }

  /// Takes a file of vhost-net that another program has opened.
  /// - Parameter file: becomes non-blocking, also for the other program. This process becomes its owner.
  public init(_ file: PassedDescriptor) throws(Problem) {
    self.file = file
    file.file.makeNonBlocking()
    var known: UInt64 = 0
    do {
      try Self.request(file.rawValue, "VHOST_GET_FEATURES", VHOST_GET_FEATURES, &known)
    } catch {
      throw .notVhost
    }
    knownFeatures = known
    do throws(SystemError) {
      _ = try checked(nestling_ioctl(file.rawValue, VHOST_SET_OWNER, nil), "VHOST_SET_OWNER")
      var backend: UInt64 = 0
      try Self.request(file.rawValue, "VHOST_GET_BACKEND_FEATURES", VHOST_GET_BACKEND_FEATURES, &backend)
      // The constant is the number of the feature's bit.
      let secondFormat: UInt64 = 1 << UInt64(VHOST_BACKEND_F_IOTLB_MSG_V2)
      guard backend & secondFormat != 0 else {
        throw SystemError("VHOST_GET_BACKEND_FEATURES", code: EOPNOTSUPP)
      }
      backend = secondFormat
      try Self.request(file.rawValue, "VHOST_SET_BACKEND_FEATURES", VHOST_SET_BACKEND_FEATURES, &backend)
    } catch {
      throw error.call == "VHOST_SET_OWNER" && error.code == EBUSY ? .busy : .failed(error)
    }
  }

  /// Takes a file without asking the kernel about it, for tests of the messages.
  init(untested file: PassedDescriptor) {
    self.file = file
    file.file.makeNonBlocking()
    knownFeatures = 0
  }

  /// For the registration with a loop: readable while a message waits.
  public var descriptor: Int32 { file.rawValue }

  /// Sends a request with its structure.
  private static func request<Argument>(
    _ descriptor: Int32, _ call: String, _ number: UInt32, _ argument: inout Argument
  ) throws(SystemError) {
    // SAFETY: the argument is this request's structure.
    let answer = unsafe withUnsafeMutablePointer(to: &argument) { unsafe nestling_ioctl(descriptor, number, $0) }
    _ = try checked(answer, call)
  }

  private func request<Argument>(_ call: String, _ number: UInt32, _ argument: inout Argument) throws(SystemError) {
    try Self.request(file.rawValue, call, number, &argument)
  }

  private func set(_ file: Int32?, of ring: UInt32, _ call: String, _ number: UInt32) throws(SystemError) {
    // -1: none
    var request = vhost_vring_file(index: ring, fd: file ?? -1)
    try self.request(call, number, &request)
  }

  // MARK: Set-up

  /// Sets the negotiated features, before a ring starts.
  /// - Parameter features: a subset of `knownFeatures`. VIRTIO_F_ACCESS_PLATFORM makes the kernel ask for translations;
  ///   it forgets all earlier ones.
  public func setFeatures(_ features: UInt64) throws(SystemError) {
    var features = features
    try request("VHOST_SET_FEATURES", VHOST_SET_FEATURES, &features)
  }

  /// Sets the guest's RAM as the only memory that the kernel accesses without translation.
  /// - Parameter memory: must stay mapped as long as this object exists.
  public func setMemory(_ memory: GuestMemory) throws(SystemError) {
    let bytes = Table(memory).bytes
    // SAFETY: the kernel reads the header and as many regions as it states.
    let answer = unsafe bytes.withUnsafeBytes {
      unsafe nestling_ioctl(
        file.rawValue, VHOST_SET_MEM_TABLE, UnsafeMutableRawPointer(mutating: $0.baseAddress))
    }
    _ = try checked(answer, "VHOST_SET_MEM_TABLE")
  }

  /// struct vhost_memory with its regions.
  struct Table {
    let regions: [vhost_memory_region]

    init(_ memory: GuestMemory) {
      regions = memory.regions.map {
        vhost_memory_region(
          guest_phys_addr: $0.address, memory_size: $0.size, userspace_addr: memory.hostAddress(of: $0),
          flags_padding: 0)
      }
    }

    var bytes: [UInt8] {
      var bytes: [UInt8] = []
      // SAFETY: the structures have no padding bytes.
      unsafe withUnsafeBytes(of: vhost_memory(nregions: UInt32(regions.count), padding: 0)) { unsafe bytes += $0 }
      for region in regions { unsafe withUnsafeBytes(of: region) { unsafe bytes += $0 } }
      return bytes
    }
  }

  // MARK: Rings

  /// Sets a stopped ring up. It moves packets from `connect` on.
  /// - Parameter ring: its addresses must be valid until `stop`: the kernel uses them unchecked.
  public func start(_ ring: Ring) throws(SystemError) {
    var size = vhost_vring_state(index: ring.number, num: UInt32(ring.size))
    try request("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM, &size)
    var start = vhost_vring_state(index: ring.number, num: UInt32(ring.start))
    try request("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE, &start)
    var addresses = vhost_vring_addr(
      index: ring.number, flags: 0, desc_user_addr: ring.descriptors, used_user_addr: ring.used,
      avail_user_addr: ring.available, log_guest_addr: 0)
    try request("VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR, &addresses)
    try set(ring.call, of: ring.number, "VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL)
    try set(ring.error, of: ring.number, "VHOST_SET_VRING_ERR", VHOST_SET_VRING_ERR)
    try set(ring.kick, of: ring.number, "VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK)
  }

  /// Connects a started ring with a tap interface's queue, or disconnects it. On return, the kernel uses a disconnected
  /// ring no more. With translation, the call fails with EFAULT if the kernel lacks the translation of the used ring:
  /// it accesses that ring within the call.
  /// - Parameter tap: the descriptor of the tap interface's queue; nil to disconnect.
  public func connect(_ ring: UInt32, to tap: Int32?) throws(SystemError) {
    try set(tap, of: ring, "VHOST_NET_SET_BACKEND", VHOST_NET_SET_BACKEND)
  }

  public func setCall(_ call: Int32?, of ring: UInt32) throws(SystemError) {
    try set(call, of: ring, "VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL)
  }

  /// Stops a ring. On return, the kernel does not access guest memory for it.
  /// - Returns: the index of the next entry of the available ring.
  public func stop(_ ring: UInt32) throws(SystemError) -> UInt16 {
    try connect(ring, to: nil)
    try set(nil, of: ring, "VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK)
    try set(nil, of: ring, "VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL)
    var next = vhost_vring_state(index: ring, num: 0)
    try request("VHOST_GET_VRING_BASE", VHOST_GET_VRING_BASE, &next)
    return UInt16(truncatingIfNeeded: next.num)
  }
}
