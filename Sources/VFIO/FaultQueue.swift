import CLinux
import Linux

/// Page requests of devices that nested page tables could not answer (IOMMU_FAULT_QUEUE_ALLOC): read here, answered
/// here.
public final class FaultQueue: Sendable {
  /// struct iommu_hwpt_pgfault.
  public struct PageRequest: Hashable, Sendable {
    public var device: UInt32
    public var pasid: UInt32?
    public var group: UInt32
    public var isLastOfGroup: Bool
    /// IOMMU_PGFAULT_PERM_*: read, write, execute, privileged.
    public var permissions: UInt32
    public var address: UInt64
    /// Names the request in the answer.
    public var cookie: UInt32
  }

  public enum Response: UInt32, Sendable {
    case success = 0
    case invalid = 1
  }

  private let owner: IOMMUFD
  let id: UInt32
  private let file: KernelFile

  public init(of owner: IOMMUFD) throws(SystemError) {
    var request = iommu_fault_alloc()
    request.size = byteCount(of: iommu_fault_alloc.self)
    try owner.file.request("IOMMU_FAULT_QUEUE_ALLOC", IOMMU_FAULT_QUEUE_ALLOC, &request)
    self.owner = owner
    id = request.out_fault_id
    file = KernelFile(owning: Int32(bitPattern: request.out_fault_fd), calls: owner.file.calls)
  }

  deinit { owner.destroy(id) }

  /// Readable while there are requests.
  public var descriptor: Int32 { file.descriptor }

  /// What is there now, at most 64; waits where there is nothing.
  public func read() throws(SystemError) -> [PageRequest] {
    var faults = [iommu_hwpt_pgfault](repeating: iommu_hwpt_pgfault(), count: 64)
    // SAFETY: the kernel fills the array.
    let answer = unsafe faults.withUnsafeMutableBytes { unsafe file.calls.read(file.descriptor, at: nil, into: $0) }
    guard answer >= 0 else { throw SystemError("read", "fault queue", code: Int32(-answer)) }
    return faults.prefix(answer / MemoryLayout<iommu_hwpt_pgfault>.size).map { fault in
      PageRequest(
        device: fault.dev_id,
        pasid: fault.flags & UInt32(IOMMU_PGFAULT_FLAGS_PASID_VALID) != 0 ? fault.pasid : nil, group: fault.grpid,
        isLastOfGroup: fault.flags & UInt32(IOMMU_PGFAULT_FLAGS_LAST_PAGE) != 0, permissions: fault.perm,
        address: fault.addr, cookie: fault.cookie)
    }
  }

  /// Answers the group that a request was the last of.
  public func respond(to cookie: UInt32, _ response: Response) throws(SystemError) {
    var answer = iommu_hwpt_page_response(cookie: cookie, code: response.rawValue)
    // SAFETY: the kernel reads the structure.
    let written = unsafe withUnsafeBytes(of: &answer) { unsafe file.calls.write(file.descriptor, at: nil, from: $0) }
    guard written >= 0 else { throw SystemError("write", "fault queue", code: Int32(-written)) }
  }
}
