import Linux
import Synchronization
import VFIO
import VTd

/// A passed-through device's translation on the host: what the guest's unit asks for, done by iommufd.
///
/// Blocked, the device is detached: the host's IOMMU then refuses its requests.
///
/// Lock order: called with the unit's bindings locked; then `PassthroughMemory`'s, or that of the page requests, then
/// that of its group and the device's.
final class HostBoundDevice: HostTranslation {
  /// What a person is to know of it.
  enum Notice: Hashable, Sendable {
    /// Its requests are refused from now on, and why.
    case blocked(HostBinding.BlockReason)
    /// The host refused what the guest asked for.
    case refused(SystemError)
    /// The host does not hand its page requests over any more.
    case pageRequestsRefused(SystemError)
    /// Its requests are refused because those of another function of its IOMMU group are.
    case blockedWithSibling(String)
  }

  private struct State {
    var attached: (any AttachmentTarget)?
    /// What it is attached to, where that is the guest's first stage.
    var firstStage: NestedTable?
    /// nil: the host answers its page requests.
    var pageRequests: HostPageRequests?
    /// Each is told once.
    var told: Set<Notice> = []
  }

  private let device: VFIODevice
  private let group: HostGroup.Member
  let memory: PassthroughMemory
  /// Its way to the guest's memory, under the guest's own tables or without.
  private let secondStage: any AttachmentTarget
  private let state: Mutex<State>
  private let tell: @Sendable (Notice) -> Void

  /// Attaches the device to the guest's memory.
  init(
    _ device: VFIODevice, memory: PassthroughMemory, nests: Bool, group: HostGroup.Member = HostGroup.alone(),
    tell: @escaping @Sendable (Notice) -> Void
  ) throws(SystemError) {
    self.device = device
    self.memory = memory
    self.group = group
    self.tell = tell
    guard nests else {
      secondStage = memory.space
      state = Mutex(State())
      try group.attach(self, to: secondStage)
      return
    }
    secondStage = try memory.attachToParent(device)
    state = Mutex(State(attached: secondStage))
    group.note(self, attachedTo: secondStage)
  }

  /// What the host translates its requests by now; nil while they are refused.
  var attached: (any AttachmentTarget)? { state.withLock { $0.attached } }

  func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)? {
    // Requests with PASID are the kernel's from 6.15 on; the unit does not ask for them yet.
    guard pasid == nil else { throw HostRefusal() }
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
        case .guestSecondStage, .supervisorRequests: notice(.blocked(reason))
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
      // Without them, if that is what the host minds.
      let nested = try attach(stage, on: parent, nil)
      refusePageRequests(error)
      return nested
    }
  }

  private func attach(
    _ stage: GuestFirstStage, on parent: HardwarePageTable, _ requests: HostPageRequests?
  ) throws(SystemError) -> NestedTable {
    let nested = try memory.nestedTable(stage, on: parent, for: device, queue: requests?.queue)
    // Linux before 6.15 takes a device's page requests only where ATS is enabled, which it is by a table of the
    // kernel's own.
    if requests != nil, state.withLock({ $0.attached == nil }) { try attach(memory.nothing()) }
    try attach(nested.table, as: nested, ridPASID: stage.pasid)
    return nested
  }

  /// - Parameters:
  ///   - target: nil for nothing.
  ///   - firstStage: that the target is.
  ///   - ridPASID: of the entry that a first stage comes from.
  private func attach(
    _ target: (any AttachmentTarget)?, as firstStage: NestedTable? = nil, ridPASID: UInt32? = nil
  ) throws(SystemError) {
    let (attached, requests) = state.withLock { ($0.attached, $0.pageRequests) }
    if let target, attached === target { return }
    func change() throws(SystemError) { try group.attach(self, to: target) }
    if let requests {
      try requests.changingTable(of: device.id, ridPASID: ridPASID, change)
    } else {
      try change()
    }
    state.withLock { $0.firstStage = firstStage }
  }

  /// For its group, which decides about the attachments of all its functions.
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
    if state.withLock({ $0.told.insert(notice).inserted }) { tell(notice) }
  }

  // MARK: Page requests

  /// Has the host hand the device's page requests over, from its next first stage on. Tried at once, so that the guest
  /// is shown nothing that will not be.
  /// - Throws: what the kernel says to it: its IOMMU has none, the device has none, it is a virtual function.
  func offerPageRequests() throws(SystemError) -> HostPageRequests? {
    guard let parent = secondStage as? HardwarePageTable else { return nil }
    let requests = try memory.pageRequests()
    // A table of which nothing is walked: the device sends no requests yet.
    let trial = GuestFirstStage(root: 0, levels: 4, domain: 0, pasid: 0)
    state.withLock { $0.pageRequests = requests }
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

  /// From the next first stage on the host answers the device's page requests.
  func refusePageRequests(_ error: SystemError) {
    state.withLock { $0.pageRequests = nil }
    notice(.pageRequestsRefused(error))
  }
}
