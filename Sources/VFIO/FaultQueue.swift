import CLinux
import Glibc
import Linux
import Synchronization

/// The page requests of devices with nested page tables (IOMMU_FAULT_QUEUE_ALLOC). This object reads the requests from
/// the kernel and returns the answers.
///
/// The kernel returns whole groups of requests, each with a cookie. `respond` answers a group, or the kernel itself
/// does (as invalid) when the device's page table is replaced or detached. Then the kernel may reuse the cookie for
/// another group.
public final class FaultQueue: Sendable {
  /// struct iommu_hwpt_pgfault.
  public struct PageRequest: Hashable, Sendable {
    /// The device's id in the iommufd, from VFIO_DEVICE_BIND_IOMMUFD.
    public var device: UInt32
    public var pasid: UInt32?
    public var group: UInt32
    public var isLastOfGroup: Bool
    public var permissions: Permissions
    public var address: UInt64
    /// Identifies the group in the answer; equal in all requests of the group.
    public var cookie: UInt32

    public init(
      device: UInt32, pasid: UInt32?, group: UInt32, isLastOfGroup: Bool, permissions: Permissions, address: UInt64,
      cookie: UInt32
    ) {
      self.device = device
      self.pasid = pasid
      self.group = group
      self.isLastOfGroup = isLastOfGroup
      self.permissions = permissions
      self.address = address
      self.cookie = cookie
    }
  }

  /// enum iommu_hwpt_pgfault_perm.
  public struct Permissions: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let read = Permissions(rawValue: UInt32(IOMMU_PGFAULT_PERM_READ))
    public static let write = Permissions(rawValue: UInt32(IOMMU_PGFAULT_PERM_WRITE))
    public static let execute = Permissions(rawValue: UInt32(IOMMU_PGFAULT_PERM_EXEC))
    public static let privileged = Permissions(rawValue: UInt32(IOMMU_PGFAULT_PERM_PRIV))
  }

  public enum Response: UInt32, Sendable {
    case success = 0
    case invalid = 1
  }

  /// The most requests in one group. The kernel limits devices to 2048 outstanding requests.
  public static let mostRequests = 4096

  private let owner: IOMMUFD
  let id: UInt32
  /// The queue's file; nil only during deinit, because the kernel destroys the queue after its file is closed.
  private let file: Mutex<KernelFile?>
  /// Readable while requests are pending.
  public let descriptor: Int32

  public init(of owner: IOMMUFD) throws(SystemError) {
    var request = iommu_fault_alloc()
    request.size = byteCount(of: iommu_fault_alloc.self)
    try owner.file.request("IOMMU_FAULT_QUEUE_ALLOC", IOMMU_FAULT_QUEUE_ALLOC, &request)
    self.owner = owner
    id = request.out_fault_id
    descriptor = Int32(bitPattern: request.out_fault_fd)
    file = Mutex(KernelFile(owning: descriptor, calls: owner.file.calls))
  }

  deinit {
    file.withLock { $0 = nil }
    owner.destroy(id)
  }

  /// Returns the pending requests, in whole groups, without waiting.
  /// - Throws: EINVAL for a group of more than `mostRequests`, which stays in the queue.
  public func read() throws(SystemError) -> [PageRequest] {
    var room = 64
    while true {
      var faults = [iommu_hwpt_pgfault](repeating: iommu_hwpt_pgfault(), count: room)
      // SAFETY: the kernel fills the array.
      let answer = unsafe faults.withUnsafeMutableBytes { buffer in
        file.withLock { file in
          file.map { unsafe $0.calls.read(descriptor, at: nil, into: buffer) } ?? -Int(EBADF)
        }
      }
      if answer > 0 {
        return faults.prefix(answer / MemoryLayout<iommu_hwpt_pgfault>.size).map(PageRequest.init)
      }
      // The first group does not fit. Older kernels then answer with 0 bytes, as for an empty queue.
      if answer == 0 || answer == -Int(EINVAL), room < Self.mostRequests {
        room *= 4
        continue
      }
      guard answer == 0 else { throw SystemError("read", "fault queue", code: Int32(-answer)) }
      return []
    }
  }

  /// Answers a group.
  /// - Throws: EINVAL if it is answered already.
  public func respond(to cookie: UInt32, _ response: Response) throws(SystemError) {
    var answer = iommu_hwpt_page_response(cookie: cookie, code: response.rawValue)
    // SAFETY: the kernel reads the structure.
    let written = unsafe withUnsafeBytes(of: &answer) { buffer in
      file.withLock { file in
        file.map { unsafe $0.calls.write(descriptor, at: nil, from: buffer) } ?? -Int(EBADF)
      }
    }
    guard written >= 0 else { throw SystemError("write", "fault queue", code: Int32(-written)) }
  }
}

extension FaultQueue.PageRequest {
  fileprivate init(_ fault: iommu_hwpt_pgfault) {
    self.init(
      device: fault.dev_id,
      pasid: fault.flags & UInt32(IOMMU_PGFAULT_FLAGS_PASID_VALID) != 0 ? fault.pasid : nil, group: fault.grpid,
      isLastOfGroup: fault.flags & UInt32(IOMMU_PGFAULT_FLAGS_LAST_PAGE) != 0,
      permissions: FaultQueue.Permissions(rawValue: fault.perm), address: fault.addr, cookie: fault.cookie)
  }
}
