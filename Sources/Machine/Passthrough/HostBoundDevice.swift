import Linux
import Synchronization
import VFIO
import VTd

/// A passed-through device's translation on the host: what the guest's unit asks for, done by iommufd.
///
/// Blocked, the device is detached: the host's IOMMU then refuses its requests.
///
/// Lock order: called with the unit's bindings locked; then `PassthroughMemory`'s, then the device's.
final class HostBoundDevice: HostTranslation {
  /// What a person is to know of it.
  enum Notice: Hashable, Sendable {
    /// Its requests are refused from now on, and why.
    case blocked(HostBinding.BlockReason)
    /// The host refused what the guest asked for.
    case refused(SystemError)
  }

  private struct State {
    var attached: (any AttachmentTarget)?
    /// Each is told once.
    var told: Set<Notice> = []
  }

  private let device: VFIODevice
  let memory: PassthroughMemory
  /// Its way to the guest's memory, under the guest's own tables or without.
  private let secondStage: any AttachmentTarget
  private let state: Mutex<State>
  private let tell: @Sendable (Notice) -> Void

  /// Attaches the device to the guest's memory.
  init(
    _ device: VFIODevice, memory: PassthroughMemory, nests: Bool, tell: @escaping @Sendable (Notice) -> Void
  ) throws(SystemError) {
    self.device = device
    self.memory = memory
    self.tell = tell
    secondStage = try memory.attach(device, nests: nests)
    state = Mutex(State(attached: secondStage))
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
        let nested = try memory.nestedTable(stage, on: parent, for: device)
        try attach(nested.table)
        return nested
      case .blocked(let reason):
        try device.detach()
        state.withLock { $0.attached = nil }
        switch reason {
        case .guestSecondStage, .supervisorRequests: notice(.blocked(reason))
        case .entry, .refused: break
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

  private func attach(_ target: any AttachmentTarget) throws(SystemError) {
    if state.withLock({ $0.attached === target }) { return }
    try device.attach(to: target)
    state.withLock { $0.attached = target }
  }

  private func notice(_ notice: Notice) {
    if state.withLock({ $0.told.insert(notice).inserted }) { tell(notice) }
  }
}
