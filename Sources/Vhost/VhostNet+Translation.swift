import CLinux
import Glibc
import Linux

// The messages by which the kernel's vhost asks for translations of DMA addresses and loses them again: struct
// vhost_msg_v2 of <linux/vhost_types.h>, read and written on the device's file (drivers/vhost/vhost.c,
// vhost_chr_read_iter and vhost_chr_write_iter).

extension VhostNet {
  /// The kernel's request for a translation. The kernel needs it to continue with a ring.
  public struct Miss: Hashable, Sendable {
    public var address: UInt64
    public var reads: Bool
    public var writes: Bool

    public init(address: UInt64, reads: Bool, writes: Bool) {
      self.address = address
      self.reads = reads
      self.writes = writes
    }
  }

  /// The translation of a range of DMA addresses.
  public struct Mapping: Hashable, Sendable {
    public var address: UInt64
    /// In bytes, not zero.
    public var size: UInt64
    /// Where the range begins in this process. The kernel accesses all of it, so the caller checks that it is RAM.
    public var hostAddress: UInt64
    public var isReadable: Bool
    public var isWritable: Bool

    public init(address: UInt64, size: UInt64, hostAddress: UInt64, isReadable: Bool, isWritable: Bool) {
      self.address = address
      self.size = size
      self.hostAddress = hostAddress
      self.isReadable = isReadable
      self.isWritable = isWritable
    }
  }

  /// Takes the next miss. Skips messages of other kinds.
  /// - Returns: nil if no message waits.
  public func takeMiss() throws(SystemError) -> Miss? {
    while true {
      var message = vhost_msg_v2()
      // SAFETY: the buffer is the structure.
      let count = unsafe withUnsafeMutableBytes(of: &message) {
        unsafe read(descriptor, $0.baseAddress, $0.count)
      }
      if count < 0 {
        if errno == EINTR { continue }
        if errno == EAGAIN { return nil }
        throw SystemError("read", "vhost-net", code: errno)
      }
      // vhost answers 0 while it has no device IOTLB.
      guard count == MemoryLayout<vhost_msg_v2>.size else { return nil }
      guard message.type == UInt32(VHOST_IOTLB_MSG_V2), Int(message.iotlb.type) == Int(VHOST_IOTLB_MISS) else {
        continue
      }
      let rights = UInt32(message.iotlb.perm)
      return Miss(
        address: message.iotlb.iova, reads: rights & UInt32(VHOST_ACCESS_RO) != 0,
        writes: rights & UInt32(VHOST_ACCESS_WO) != 0)
    }
  }

  /// Adds a translation. Rings that wait for an address within it continue. The kernel keeps an earlier translation
  /// that overlaps it, so a caller that changes one invalidates the range first.
  public func add(_ mapping: Mapping) throws(SystemError) {
    var rights: UInt8 = 0
    if mapping.isReadable { rights |= UInt8(VHOST_ACCESS_RO) }
    if mapping.isWritable { rights |= UInt8(VHOST_ACCESS_WO) }
    try write(
      vhost_iotlb_msg(
        iova: mapping.address, size: mapping.size, uaddr: mapping.hostAddress, perm: rights,
        type: UInt8(VHOST_IOTLB_UPDATE)))
  }

  /// Removes each translation that overlaps a range. On return, no access that used one of them is in progress, because
  /// the kernel takes the locks of all rings.
  /// - Parameter size: in bytes. The range ends at the top of the address space at the latest.
  public func invalidate(_ address: UInt64, size: UInt64) throws(SystemError) {
    try write(
      vhost_iotlb_msg(iova: address, size: size, uaddr: 0, perm: 0, type: UInt8(VHOST_IOTLB_INVALIDATE)))
  }

  /// Removes all translations, and frees the misses that the kernel keeps until a translation answers them. Both rings
  /// must be without a socket, so that none of them asks meanwhile.
  public func forgetMisses() throws(SystemError) {
    // A translation without rights answers all misses, and gives access to nothing.
    try add(Mapping(address: 0, size: .max, hostAddress: 0, isReadable: false, isWritable: false))
    try invalidate(0, size: .max)
  }

  private func write(_ body: vhost_iotlb_msg) throws(SystemError) {
    var message = vhost_msg_v2()
    message.type = UInt32(VHOST_IOTLB_MSG_V2)
    message.iotlb = body
    while true {
      // SAFETY: the buffer is the structure.
      let count = unsafe withUnsafeBytes(of: &message) {
        unsafe Glibc.write(descriptor, $0.baseAddress, $0.count)
      }
      if count == MemoryLayout<vhost_msg_v2>.size { return }
      if count >= 0 { throw SystemError("write", "vhost-net", code: EIO) }
      if errno != EINTR { throw SystemError("write", "vhost-net", code: errno) }
    }
  }
}
