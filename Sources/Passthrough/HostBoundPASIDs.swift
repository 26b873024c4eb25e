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
/// Lock order: the caller holds the lock of the unit's bindings; then the lock of `PassthroughMemory` or of the page
/// requests; then that of the device's attachments. `state` is held across no call.
final class HostBoundPASIDs: Sendable {
  private struct Attachment {
    let target: any AttachmentTarget
    /// The first stage whose table the target is.
    let firstStage: NestedTable?
    /// Passes on the page requests of the table; nil if the host answers them.
    let requests: HostPageRequests?
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

  /// - Parameters:
  ///   - requests: passes on page requests; nil if the host answers them.
  ///   - refuse: called if the host accepts the binding only without page requests.
  /// - Returns: the table of a first stage.
  func bind(
    _ pasid: UInt32, to binding: HostBinding, _ requests: HostPageRequests?, refuse: (SystemError) -> Void,
    notice: (HostBoundDevice.Notice) -> Void
  ) throws(HostRefusal) -> NestedTable? {
    // The kernel uses PASID 0 of the host's tables for requests without PASID.
    guard pasid != 0, pasid >> UInt32(width) == 0 else { throw HostRefusal() }
    do throws(SystemError) {
      switch binding {
      case .secondStage:
        try attach(pasid, to: parent, as: nil, nil)
        return nil
      case .firstStage(let stage):
        guard let requests else { return try attach(pasid, to: stage, nil) }
        do {
          return try attach(pasid, to: stage, requests)
        } catch {
          // The host may have refused only the page requests: try again without them.
          let nested = try attach(pasid, to: stage, nil)
          refuse(error)
          return nested
        }
      case .blocked(let reason):
        let problem = state.withLock { $0[pasid]?.firstStage?.invalidationProblem }
        try change(pasid, to: nil) { () throws(SystemError) in try device.detach(pasid: pasid) }
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

  private func attach(
    _ pasid: UInt32, to stage: GuestFirstStage, _ requests: HostPageRequests?
  ) throws(SystemError) -> NestedTable {
    let nested = try memory.nestedTable(stage, on: parent, for: device, queue: requests?.queue)
    try attach(pasid, to: nested.table, as: nested, requests)
    return nested
  }

  /// Attaches a PASID, or replaces its table. The kernel keeps the former table after an error.
  private func attach(
    _ pasid: UInt32, to target: any AttachmentTarget, as firstStage: NestedTable?, _ requests: HostPageRequests?
  ) throws(SystemError) {
    if state.withLock({ $0[pasid]?.target }) === target { return }
    let requests = firstStage == nil ? nil : requests
    try change(pasid, to: requests) { () throws(SystemError) in try device.attach(to: target, pasid: pasid) }
    let attachment = Attachment(target: target, firstStage: firstStage, requests: requests)
    let former = state.withLock { $0.updateValue(attachment, forKey: pasid) }
    // Release the former table without the lock: its destruction is a system call.
    _ = former
  }

  /// Changes the table of a PASID, so that no page request of the former one is passed on afterwards.
  /// - Parameter requests: passes on the page requests of the new table; nil if the host answers them.
  private func change(
    _ pasid: UInt32, to requests: HostPageRequests?, _ body: () throws(SystemError) -> Void
  ) throws(SystemError) {
    guard let involved = requests ?? state.withLock({ $0[pasid]?.requests }) else { return try body() }
    try involved.changingTable(of: device.id, pasid: pasid, passesOn: requests != nil, body)
  }
}
