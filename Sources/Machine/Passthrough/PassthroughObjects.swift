import Glibc
import Linux
import Synchronization
import VFIO
import VTd

/// The objects that the passed-through devices of one machine share: the iommufd objects with their memory, the
/// bindings of each unit, and the listener for notices.
///
/// Lock order: `building`, which is held while an iommufd is opened and RAM is mapped, so only builds of devices wait
/// for it; then `state`, which is held across no call of the host.
final class PassthroughObjects: Sendable {
  private struct Weak {
    weak var memory: PassthroughMemory?
  }
  private struct State {
    /// Weak references, because the devices hold the objects.
    var memories: [Identifier: Weak] = [:]
    /// The iommufd objects whose files were passed to Nestling, which cannot open them again.
    var inherited: [Identifier: IOMMUFD] = [:]
    var areBusesReset = false
    var bindings: [ObjectIdentifier: HostBindings] = [:]
    var notices: [PassthroughNotice] = []
    var listener: (@Sendable (PassthroughNotice) -> Void)?
  }

  /// The kernel's system calls.
  let calls: any SystemCalls
  /// The folder where sysfs is mounted.
  let sysfs: String
  /// RLIMIT_MEMLOCK, in bytes; nil for no limit.
  let lockedMemory: @Sendable () -> UInt64?
  let groups = HostGroups()
  private let building = Mutex(())
  private let state = Mutex(State())

  init(
    calls: any SystemCalls = HostSystemCalls(), sysfs: String = "/sys",
    lockedMemory: @escaping @Sendable () -> UInt64? = { ResourceLimit.lockedMemory }
  ) {
    self.calls = calls
    self.sysfs = sysfs
    self.lockedMemory = lockedMemory
  }

  /// Returns the memory of an iommufd object. For the first device that names the object, opens it and maps RAM.
  func memory(of options: IOMMUFDOptions, ram: GuestMemory) throws(PassthroughError.Problem) -> PassthroughMemory {
    try building.withLock { _ throws(PassthroughError.Problem) in
      let existing = state.withLock { state in options.id.flatMap { state.memories[$0]?.memory } }
      if let existing { return existing }
      let iommufd: IOMMUFD
      do throws(SystemError) {
        iommufd = try self.iommufd(of: options)
      } catch {
        throw .iommufd(error)
      }
      do throws(SystemError) {
        let memory = try PassthroughMemory(of: iommufd, name: options.id?.text, memory: ram)
        if let id = options.id { state.withLock { $0.memories[id] = Weak(memory: memory) } }
        return memory
      } catch {
        throw problem(of: error, ram: ram) ?? .map(error)
      }
    }
  }

  private func iommufd(of options: IOMMUFDOptions) throws(SystemError) -> IOMMUFD {
    if let id = options.id, let iommufd = state.withLock({ $0.inherited[id] }) { return iommufd }
    guard let file = options.file?.kernelFile(calls: calls) else { return try IOMMUFD(calls: calls) }
    let iommufd = IOMMUFD(file: file)
    if let id = options.id { state.withLock { $0.inherited[id] = iommufd } }
    return iommufd
  }

  /// Returns the problem that the user can solve, if this problem made mapping RAM or attaching a device fail. Both pin
  /// RAM.
  func problem(of error: SystemError, ram: GuestMemory) -> PassthroughError.Problem? {
    guard error.code == ENOMEM else { return nil }
    let wanted = ram.regions.reduce(0) { $0 + $1.size }
    // Other devices of this process may already use a part of the limit.
    return .lockedMemory(limit: lockedMemory(), wanted: wanted)
  }

  /// Carries out the bus resets that functions wait for. No CPU runs.
  func resetBuses() {
    let memories = state.withLock { state in
      state.areBusesReset = true
      return state.memories.values.compactMap(\.memory)
    }
    for memory in memories { memory.peers.resetBuses() }
  }

  /// Whether the machine has started. If so, the guest uses its functions, so none of them is reset for another one.
  var areBusesReset: Bool { state.withLock { $0.areBusesReset } }

  func bindings(of unit: RemappingUnit) -> HostBindings {
    state.withLock { state in
      if let bindings = state.bindings[ObjectIdentifier(unit)] { return bindings }
      let bindings = HostBindings(unit: unit)
      state.bindings[ObjectIdentifier(unit)] = bindings
      return bindings
    }
  }

  /// Returns the bindings of a unit that has or had passed-through functions.
  func existingBindings(of unit: RemappingUnit) -> HostBindings? {
    state.withLock { $0.bindings[ObjectIdentifier(unit)] }
  }

  /// Releases an iommufd object that no device uses any more.
  func remove(_ id: Identifier) {
    // Release the object without the lock, because its end makes calls of the host.
    let gone = state.withLock { state in
      state.memories[id] = nil
      return state.inherited.removeValue(forKey: id)
    }
    _ = gone
  }

  /// Releases the iommufd objects, after their devices. The bindings stay, as they hold the counters.
  func removeAll() {
    let gone = state.withLock { state in
      defer { state.inherited = [:] }
      state.memories = [:]
      return state.inherited
    }
    _ = gone
  }

  // MARK: Notices

  func report(_ notice: PassthroughNotice) {
    let listener = state.withLock { state in
      if state.listener == nil { state.notices.append(notice) }
      return state.listener
    }
    listener?(notice)
  }

  /// Sets the listener for notices, and passes it those that came before.
  /// - Parameter listener: must not wait.
  func listen(_ listener: @escaping @Sendable (PassthroughNotice) -> Void) {
    let waiting = state.withLock { state in
      defer { state.notices = [] }
      state.listener = listener
      return state.notices
    }
    for notice in waiting { listener(notice) }
  }
}

/// A notice to the user about a passed-through device while the guest runs. Each is reported once, but errors and
/// requests are reported whenever the device's file signals them.
public struct PassthroughNotice: Hashable, Sendable {
  public enum Reason: Hashable, Sendable {
    /// The guest uses a second stage for the device, which is not supported: the device's requests are refused.
    case guestSecondStage
    /// The guest enables supervisor requests without PASID, which is not supported: the device's requests are refused.
    case supervisorRequests
    /// The host refused the translation that the guest asked for: the device's requests are refused.
    case hostRefused(SystemError)
    /// The device's requests are refused while those of another function of its IOMMU group are.
    case blockedWithSibling(String)
    /// The host answers the device's page requests itself: the guest sees none.
    case pageRequestsRefused(SystemError)
    /// The device had an error that it cannot recover from: the guest is stopped.
    case error
    /// The host requests the device back: the guest loses it within `x-req-patience`.
    case request
    /// The device was plugged while the guest ran, and is not reset: only a bus reset is possible, and would also reset
    /// these functions of the guest.
    case notResetBeside([String])
    /// The device could not be reset.
    case notReset(SystemError)
    /// The host refused interrupts that the guest asked for: some or all of them do not arrive.
    case interruptsRefused(SystemError)
    /// Other devices of the guest cannot reach the device's BARs.
    case outOfPeersReach(SystemError)
  }

  /// The device as the options name it.
  public let device: String
  public let reason: Reason
}

extension PassthroughNotice {
  init(device: String, _ notice: HostBoundDevice.Notice) {
    self.device = device
    reason =
      switch notice {
      case .refused(let error): .hostRefused(error)
      case .pageRequestsRefused(let error): .pageRequestsRefused(error)
      case .blockedWithSibling(let sibling): .blockedWithSibling(sibling)
      case .blocked(.supervisorRequests): .supervisorRequests
      case .blocked: .guestSecondStage
      }
  }
}
