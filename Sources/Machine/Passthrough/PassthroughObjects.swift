import Glibc
import Linux
import Synchronization
import VFIO
import VTd

/// What the passed-through devices of one machine share: the iommufd objects with their memory, the bindings of each
/// unit, and who is to hear what a person should know.
///
/// Lock order: `building`, which only those who build devices wait for: it is held while an iommufd is opened and RAM
/// mapped; then `state`, across no call of the host's.
final class PassthroughObjects: Sendable {
  private struct Weak {
    weak var memory: PassthroughMemory?
  }
  private struct State {
    /// Their devices hold them.
    var memories: [Identifier: Weak] = [:]
    /// Those whose files were given to us: they cannot be opened again.
    var inherited: [Identifier: IOMMUFD] = [:]
    var areBusesReset = false
    var bindings: [ObjectIdentifier: HostBindings] = [:]
    var notices: [PassthroughNotice] = []
    var listener: (@Sendable (PassthroughNotice) -> Void)?
  }

  /// The kernel.
  let calls: any SystemCalls
  /// Where sysfs is mounted.
  let sysfs: String
  /// RLIMIT_MEMLOCK, in bytes; nil for none.
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

  /// The memory of an iommufd object, which is opened, and RAM mapped, for the first device that names it.
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

  /// What a person can do something about, where RAM is mapped or a device attached to it: that pins RAM.
  func problem(of error: SystemError, ram: GuestMemory) -> PassthroughError.Problem? {
    guard error.code == ENOMEM else { return nil }
    let wanted = ram.regions.reduce(0) { $0 + $1.size }
    // Other devices of this process may have used up some of it.
    return .lockedMemory(limit: lockedMemory(), wanted: wanted)
  }

  /// The bus resets that functions wait for. No CPU is running.
  func resetBuses() {
    let memories = state.withLock { state in
      state.areBusesReset = true
      return state.memories.values.compactMap(\.memory)
    }
    for memory in memories { memory.peers.resetBuses() }
  }

  /// Whether the machine has started: the guest uses the functions that it has, so none of them is reset for another.
  var areBusesReset: Bool { state.withLock { $0.areBusesReset } }

  func bindings(of unit: TranslationUnit) -> HostBindings {
    state.withLock { state in
      if let bindings = state.bindings[ObjectIdentifier(unit)] { return bindings }
      let bindings = HostBindings(unit: unit)
      state.bindings[ObjectIdentifier(unit)] = bindings
      return bindings
    }
  }

  /// Those of a unit that has passed-through functions, or had.
  func existingBindings(of unit: TranslationUnit) -> HostBindings? {
    state.withLock { $0.bindings[ObjectIdentifier(unit)] }
  }

  /// Lets go of an iommufd object that no device names any more.
  func remove(_ id: Identifier) {
    // Let go with the lock released, as its end is calls of the host.
    let gone = state.withLock { state in
      state.memories[id] = nil
      return state.inherited.removeValue(forKey: id)
    }
    _ = gone
  }

  /// Lets go of everything but the counts; the devices go first.
  func removeAll() {
    let gone = state.withLock { state in
      defer { state.inherited = [:] }
      state.memories = [:]
      return state.inherited
    }
    _ = gone
  }

  // MARK: Notices

  func tell(_ notice: PassthroughNotice) {
    let listener = state.withLock { state in
      if state.listener == nil { state.notices.append(notice) }
      return state.listener
    }
    listener?(notice)
  }

  /// - Parameter listener: hears what was told before, too. It waits for nothing.
  func listen(_ listener: @escaping @Sendable (PassthroughNotice) -> Void) {
    let waiting = state.withLock { state in
      defer { state.notices = [] }
      state.listener = listener
      return state.notices
    }
    for notice in waiting { listener(notice) }
  }
}

/// What a person is to know of a passed-through device while the guest runs. Each is told once, but for errors and
/// requests: those as often as the device's file signals them.
public struct PassthroughNotice: Hashable, Sendable {
  public enum Kind: Hashable, Sendable {
    /// The guest translates its requests by a second stage of its own, which is not followed: they are refused.
    case guestSecondStage
    /// The guest asks for supervisor requests without PASID: they are refused.
    case supervisorRequests
    /// The host refused what the guest asked for; its requests are refused.
    case hostRefused(SystemError)
    /// Its requests are refused while those of another function of its IOMMU group are.
    case blockedWithSibling(String)
    /// The host answers the device's page requests by itself: the guest sees none.
    case pageRequestsRefused(SystemError)
    /// The device met an error that it does not recover from: the guest is stopped.
    case error
    /// The host wants the device back: the guest loses it within its patience.
    case request
    /// It came while the guest ran, and only a reset of its bus would reset it, with these functions of the guest.
    case notResetBeside([String])
    /// No reset brought it to its first state.
    case notReset(SystemError)
    /// The host refused interrupts that the guest asked for: some or all of them do not come.
    case interruptsRefused(SystemError)
    /// BARs are out of reach of other devices of the guest.
    case outOfPeersReach(SystemError)
  }

  /// As the options name it.
  public let device: String
  public let kind: Kind
}
