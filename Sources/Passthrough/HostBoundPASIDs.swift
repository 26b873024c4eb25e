import Glibc
import Linux
import Synchronization
import VFIO
import VTd

/// The PASIDs of a passed-through device on the host: iommufd attaches each one to its own table (Linux 6.15), which the
/// kernel writes into that PASID's entry of the host's PASID table.
///
/// The kernel attaches PASIDs for all functions of a group together (drivers/iommu/iommu.c, `iommu_attach_device_pasid`).
/// That concerns no other function of the guest: PASIDs are offered only behind a unit with first stage, where a function
/// is the machine's only one of its group.
///
/// Lock order: the caller holds the lock of the unit's bindings; then the lock of `PassthroughMemory`; then that of the
/// device's attachments. `state` is held across no call.
final class HostBoundPASIDs: Sendable {
  private struct Attachment {
    let target: any AttachmentTarget
    /// The first stage whose table the target is.
    let firstStage: NestedTable?
  }

  /// Width in bits of the PASIDs that can be attached: at least 1.
  let width: Int
  private let device: VFIODevice
  private let memory: PassthroughMemory
  /// The translation to the guest's memory, alone or as the parent of first stages. It allows PASIDs.
  private let parent: HardwarePageTable
  private let state = Mutex<[UInt32: Attachment]>([:])

  /// Attaches a PASID and detaches it, so that the guest sees PASIDs only if the host attaches them.
  /// - Throws: the kernel's error: the kernel, the host's IOMMU or the device has no PASIDs.
  init(
    of device: VFIODevice, width: Int, memory: PassthroughMemory, parent: HardwarePageTable
  ) throws(SystemError) {
    guard parent.allowsPASIDs else {
      throw SystemError("IOMMU_HWPT_ALLOC", memory.iommufd.file.name, code: EOPNOTSUPP)
    }
    (self.device, self.width, self.memory, self.parent) = (device, width, memory, parent)
    // The host does not walk this table: the device sends no requests yet.
    let trial = GuestFirstStage(root: 0, levels: 4, domain: 0, pasid: 1)
    try device.attach(to: memory.nestedTable(trial, on: parent, for: device).table, pasid: 1)
    try device.detach(pasid: 1)
  }

  /// The attached PASIDs with their tables, in order.
  var attached: [(pasid: UInt32, target: any AttachmentTarget)] {
    state.withLock { state in state.sorted { $0.key < $1.key }.map { ($0.key, $0.value.target) } }
  }

  /// - Returns: the table of a first stage.
  func bind(
    _ pasid: UInt32, to binding: HostBinding, notice: (HostBoundDevice.Notice) -> Void
  ) throws(HostRefusal) -> NestedTable? {
    // The kernel uses PASID 0 of the host's tables for requests without PASID.
    guard pasid != 0, pasid >> UInt32(width) == 0 else { throw HostRefusal() }
    do throws(SystemError) {
      switch binding {
      case .secondStage:
        try attach(pasid, to: parent, as: nil)
        return nil
      case .firstStage(let stage):
        let nested = try memory.nestedTable(stage, on: parent, for: device)
        try attach(pasid, to: nested.table, as: nested)
        return nested
      case .blocked(let reason):
        let problem = state.withLock { $0[pasid]?.firstStage?.invalidationProblem }
        try device.detach(pasid: pasid)
        _ = state.withLock { $0.removeValue(forKey: pasid) }
        switch reason {
        case .guestSecondStage, .supervisorRequests, .tooManyPASIDs: notice(.pasidBlocked(reason))
        case .refused: if let problem { notice(.pasidRefused(problem)) }
        case .entry: break
        }
        return nil
      }
    } catch {
      notice(.pasidRefused(error))
      throw HostRefusal()
    }
  }

  /// Attaches a PASID, or replaces its table. The kernel keeps the former table after an error.
  private func attach(
    _ pasid: UInt32, to target: any AttachmentTarget, as firstStage: NestedTable?
  ) throws(SystemError) {
    if state.withLock({ $0[pasid]?.target }) === target { return }
    try device.attach(to: target, pasid: pasid)
    let former = state.withLock { $0.updateValue(Attachment(target: target, firstStage: firstStage), forKey: pasid) }
    // Release the former table without the lock: its destruction is a system call.
    _ = former
  }
}
