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
public final class PassthroughObjects: Sendable {
  private struct Weak {
    weak var memory: PassthroughMemory?
  }
  private struct State {
    /// By the iommufd object's id. Weak references, because the devices hold the objects.
    var memories: [String: Weak] = [:]
    /// The iommufd objects whose files were passed to Nestling, which cannot open them again.
    var inherited: [String: IOMMUFD] = [:]
    var areBusesReset = false
    var bindings: [ObjectIdentifier: HostBindings] = [:]
    var notices: [PassthroughNotice] = []
    var listener: (@Sendable (PassthroughNotice) -> Void)?
  }

  /// The kernel's system calls.
  public let calls: any SystemCalls
  /// The folder where sysfs is mounted.
  let sysfs: String
  /// RLIMIT_MEMLOCK, in bytes; nil for no limit.
  let lockedMemory: @Sendable () -> UInt64?
  let groups = HostGroups()
  private let building = Mutex(())
  private let state = Mutex(State())

  public init(
    calls: any SystemCalls = HostSystemCalls(), sysfs: String = "/sys",
    lockedMemory: @escaping @Sendable () -> UInt64? = { ResourceLimit.lockedMemory }
  ) {
    self.calls = calls
    self.sysfs = sysfs
    self.lockedMemory = lockedMemory
  }

  /// Returns the memory of an iommufd object. For the first device that names the object, opens it and maps RAM.
  /// - Parameters:
  ///   - id: the object's id.
  ///   - file: returns the open `/dev/iommu` that the object's options name; nil to open `/dev/iommu`.
  func memory(
    of id: String, file: () -> KernelFile?, ram: GuestMemory
  ) throws(PassthroughError.Problem) -> PassthroughMemory {
    try building.withLock { _ throws(PassthroughError.Problem) in
      if let existing = state.withLock({ $0.memories[id]?.memory }) { return existing }
      let iommufd: IOMMUFD
      do throws(SystemError) {
        iommufd = try self.iommufd(of: id, file: file)
      } catch {
        throw .iommufd(error)
      }
      do throws(SystemError) {
        let memory = try PassthroughMemory(of: iommufd, name: id, memory: ram)
        state.withLock { $0.memories[id] = Weak(memory: memory) }
        return memory
      } catch {
        throw problem(of: error, ram: ram) ?? .map(error)
      }
    }
  }

  private func iommufd(of id: String, file: () -> KernelFile?) throws(SystemError) -> IOMMUFD {
    if let iommufd = state.withLock({ $0.inherited[id] }) { return iommufd }
    guard let file = file() else { return try IOMMUFD(calls: calls) }
    let iommufd = IOMMUFD(file: file)
    state.withLock { $0.inherited[id] = iommufd }
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
  public func resetBuses() {
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
  public func existingBindings(of unit: RemappingUnit) -> HostBindings? {
    state.withLock { $0.bindings[ObjectIdentifier(unit)] }
  }

  /// Releases an iommufd object that no device uses any more.
  public func remove(_ id: String) {
    // Release the object without the lock, because its end makes calls of the host.
    let gone = state.withLock { state in
      state.memories[id] = nil
      return state.inherited.removeValue(forKey: id)
    }
    _ = gone
  }

  /// Releases the iommufd objects, after their devices. The bindings stay, as they hold the counters.
  public func removeAll() {
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
  public func listen(_ listener: @escaping @Sendable (PassthroughNotice) -> Void) {
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
    /// The guest uses a second stage for a PASID, which is not supported: the requests with this PASID are refused.
    case pasidSecondStage
    /// The guest uses more PASIDs than are bound for one device: the requests with the others are refused.
    case tooManyPASIDs(limit: Int)
    /// The host refused the translation that the guest asked for requests with a PASID: they are refused.
    case pasidRefused(SystemError)
    /// The host attaches none of the device's PASIDs, though its kernel reports them: the guest can use none.
    case pasidsRefused(SystemError)
    /// The device has PASIDs, but its configuration space has no room for the capability: the guest uses none.
    case noRoomForPASIDs
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
    /// - Parameter kernelRelease: what `uname -r` prints.
    case outOfPeersReach(SystemError, kernelRelease: String)
  }

  /// The device as the options name it.
  public let device: String
  public let reason: Reason

  public init(device: String, reason: Reason) {
    self.device = device
    self.reason = reason
  }
}

extension PassthroughNotice.Reason {
  init(_ notice: HostBoundDevice.Notice) {
    self =
      switch notice {
      case .refused(let error): .hostRefused(error)
      case .pageRequestsRefused(let error): .pageRequestsRefused(error)
      case .blockedWithSibling(let sibling): .blockedWithSibling(sibling)
      case .pasidBlocked(.tooManyPASIDs): .tooManyPASIDs(limit: PASIDLimit.bound)
      case .pasidBlocked: .pasidSecondStage
      case .pasidRefused(let error): .pasidRefused(error)
      case .blocked(.supervisorRequests): .supervisorRequests
      case .blocked: .guestSecondStage
      }
  }
}
