import Linux
import Synchronization
import VFIO
import VTd

/// A passed-through device's translation on the host: uses iommufd to bind the device as the guest's unit requests.
///
/// A blocked device is detached: the host's IOMMU then refuses its requests. The requests with a PASID are attached and
/// detached apart from those without (`HostBoundPASIDs`).
///
/// Lock order: the caller holds the lock of the unit's bindings; then the lock of `PassthroughMemory` or of the page
/// requests, then that of the group and the device's.
final class HostBoundDevice: HostTranslation {
  /// An event that is reported to the user.
  enum Notice: Hashable, Sendable {
    /// The device's requests are refused from now on, for the given reason.
    case blocked(HostBinding.BlockReason)
    /// The host refused the translation that the guest's tables define.
    case refused(SystemError)
    /// The host no longer passes on the device's page requests.
    case pageRequestsRefused(SystemError)
    /// The device's requests are refused because those of another function of its IOMMU group are.
    case blockedWithSibling(String)
    /// The requests with a PASID are refused, for the given reason, those with other PASIDs perhaps not.
    case pasidBlocked(HostBinding.BlockReason)
    /// The host refused the translation that the guest's tables define for a PASID.
    case pasidRefused(SystemError)
  }

  private struct State {
    var attached: (any AttachmentTarget)?
    /// The attached first stage of the guest; nil for any other target.
    var firstStage: NestedTable?
    /// The queue that passes on page requests; nil if the host answers the device's page requests.
    var pageRequests: HostPageRequests?
    /// The queue that the attached table may have, even if `pageRequests` has become nil since.
    var queueInUse: HostPageRequests?
    /// The notices that were reported: each is reported once.
    var reported: Set<Notice> = []
  }

  private let device: VFIODevice
  private let group: HostGroup.Member
  let memory: PassthroughMemory
  /// The translation to the guest's memory, used alone or as the parent of the guest's first stages.
  private let secondStage: any AttachmentTarget
  /// Nil if the host attaches no PASIDs of the device.
  private let pasids: HostBoundPASIDs?
  /// The reason why the host attaches none of the PASIDs that were asked for.
  let pasidRefusal: SystemError?
  private let state: Mutex<State>
  private let report: @Sendable (Notice) -> Void

  /// Attaches the device to the guest's memory.
  /// - Parameters:
  ///   - nests: whether the guest's unit offers first stage.
  ///   - width: the width of the PASIDs that the guest's unit and the host's kernel offer for the device; 0 for none.
  init(
    _ device: VFIODevice, memory: PassthroughMemory, nests: Bool, pasidWidth width: Int = 0,
    group: HostGroup.Member = HostGroup.alone(), report: @escaping @Sendable (Notice) -> Void
  ) throws(SystemError) {
    self.device = device
    self.memory = memory
    self.group = group
    self.report = report
    guard nests else {
      (pasids, pasidRefusal) = (nil, nil)
      secondStage = memory.space
      state = Mutex(State())
      try group.attach(self, to: secondStage)
      return
    }
    let parent = try memory.attachToParent(device, allowingPASIDs: width > 0)
    secondStage = parent
    var pasids: HostBoundPASIDs?
    var refusal: SystemError?
    if width > 0 {
      do throws(SystemError) {
        pasids = try HostBoundPASIDs(of: device, width: width, memory: memory, parent: parent)
      } catch {
        refusal = error
      }
    }
    (self.pasids, pasidRefusal) = (pasids, refusal)
    state = Mutex(State(attached: secondStage))
    group.record(self, attachedTo: secondStage)
  }

  /// The table by which the host now translates the device's requests; nil while the requests are refused.
  var attached: (any AttachmentTarget)? { state.withLock { $0.attached } }
  /// The same for the attached PASIDs, in order.
  var attachedPASIDs: [(pasid: UInt32, target: any AttachmentTarget)] { pasids?.attached ?? [] }

  /// The width of the PASIDs that the host attaches; 0 for none.
  var pasidWidth: Int { pasids?.width ?? 0 }

  func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)? {
    if let pasid {
      guard let pasids else { throw HostRefusal() }
      let requests = state.withLock { $0.pageRequests }
      return try pasids.bind(pasid, to: binding, requests, refuse: refusePageRequests, notice: notice)
    }
    do {
      switch binding {
      case .secondStage:
        try attach(secondStage)
        return nil
      case .firstStage(let stage):
        guard let parent = secondStage as? HardwarePageTable else { throw HostRefusal() }
        return try attach(stage, on: parent)
      case .blocked(let reason):
        let problem = state.withLock { $0.firstStage?.invalidationProblem }
        try attach(nil)
        switch reason {
        case .guestSecondStage, .supervisorRequests, .tooManyPASIDs: notice(.blocked(reason))
        case .refused: if let problem { notice(.refused(problem)) }
        case .entry: break
        }
        return nil
      }
    } catch let error as SystemError {
      notice(.refused(error))
      throw HostRefusal()
    } catch {
      throw HostRefusal()
    }
  }

  private func attach(_ stage: GuestFirstStage, on parent: HardwarePageTable) throws(SystemError) -> NestedTable {
    guard let requests = state.withLock({ $0.pageRequests }) else { return try attach(stage, on: parent, nil) }
    do {
      return try attach(stage, on: parent, requests)
    } catch {
      // The host may have refused only the page requests: try again without them.
      let nested = try attach(stage, on: parent, nil)
      refusePageRequests(error)
      return nested
    }
  }

  private func attach(
    _ stage: GuestFirstStage, on parent: HardwarePageTable, _ requests: HostPageRequests?
  ) throws(SystemError) -> NestedTable {
    let nested = try memory.nestedTable(stage, on: parent, for: device, queue: requests?.queue)
    // Linux before 6.15 accepts a fault queue for a device only while its ATS is enabled. Attaching the device to a
    // table of the kernel enables ATS. Such a table allows no PASIDs, but a kernel with PASIDs does not need it.
    if requests != nil, pasids == nil, state.withLock({ $0.attached == nil }) { try attach(memory.nothing()) }
    try attach(nested.table, as: nested, ridPASID: stage.pasid)
    return nested
  }

  /// - Parameters:
  ///   - target: nil to detach the device.
  ///   - firstStage: the first stage whose table the target is.
  ///   - ridPASID: the PASID of the entry that holds the first stage.
  private func attach(
    _ target: (any AttachmentTarget)?, as firstStage: NestedTable? = nil, ridPASID: UInt32? = nil
  ) throws(SystemError) {
    let (attached, requests) = state.withLock { ($0.attached, $0.queueInUse) }
    if let target, attached === target { return }
    func change() throws(SystemError) { try group.attach(self, to: target) }
    if let requests {
      try requests.changingTable(of: device.id, ridPASID: ridPASID, change)
    } else {
      try change()
    }
    state.withLock { $0.firstStage = firstStage }
  }

  /// Attaches or detaches the device. Only its group calls this, as it decides the attachments of all its functions.
  func move(to target: (any AttachmentTarget)?) throws(SystemError) {
    if let target {
      guard attached !== target else { return }
      try device.attach(to: target)
    } else {
      try device.detach()
    }
    state.withLock { $0.attached = target }
  }

  func notice(_ notice: Notice) {
    if state.withLock({ $0.reported.insert(notice).inserted }) { report(notice) }
  }

  // MARK: Page requests

  /// Asks the host to pass on the device's page requests from its next first stage on. Makes the request once as a
  /// test, so that the guest sees the capability only if the host supports it.
  /// - Throws: the kernel's error: the host's IOMMU or the device has no page requests, or the device is a virtual
  ///   function.
  /// - Returns: nil if the device is behind a unit without first stage.
  func offerPageRequests() throws(SystemError) -> HostPageRequests? {
    guard let parent = secondStage as? HardwarePageTable else { return nil }
    let requests = try memory.pageRequests()
    // The host does not walk this table: the device sends no requests yet.
    let trial = GuestFirstStage(root: 0, levels: 4, domain: 0, pasid: 0)
    state.withLock { ($0.pageRequests, $0.queueInUse) = (requests, requests) }
    do throws(SystemError) {
      _ = try attach(trial, on: parent, requests)
      try attach(secondStage)
    } catch {
      try? attach(secondStage)
      state.withLock { $0.pageRequests = nil }
      throw error
    }
    return requests
  }

  /// Stops asking for page requests: from the next first stage on, the host answers them.
  func refusePageRequests(_ error: SystemError) {
    state.withLock { $0.pageRequests = nil }
    notice(.pageRequestsRefused(error))
  }
}
