import Glibc
import Linux
import Synchronization
import VFIO
import VTd

/// What the passed-through devices of one machine share: the iommufd objects with their memory, the bindings of each
/// unit, and who is to hear what a person should know.
///
/// Lock order: `state` is held while an iommufd is opened and RAM mapped; it is taken before nothing of the board's.
final class PassthroughObjects: Sendable {
  private struct State {
    var memories: [Identifier: PassthroughMemory] = [:]
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
  private let state = Mutex(State())

  init(
    calls: any SystemCalls = HostSystemCalls(), sysfs: String = "/sys",
    lockedMemory: @escaping @Sendable () -> UInt64? = { ResourceLimit.lockedMemory }
  ) {
    self.calls = calls
    self.sysfs = sysfs
    self.lockedMemory = lockedMemory
  }

  /// The memory of an iommufd object, opened and mapped for the first device that names it.
  func memory(of options: IOMMUFDOptions, ram: GuestMemory) throws(PassthroughError.Problem) -> PassthroughMemory {
    try state.withLock { (state) throws(PassthroughError.Problem) in
      if let id = options.id, let memory = state.memories[id] { return memory }
      let iommufd: IOMMUFD
      do throws(SystemError) {
        iommufd =
          if let file = options.file?.kernelFile(calls: calls) {
            IOMMUFD(file: file)
          } else {
            try IOMMUFD(calls: calls)
          }
      } catch {
        throw .iommufd(error)
      }
      do throws(SystemError) {
        let memory = try PassthroughMemory(of: iommufd, name: options.id?.text, memory: ram)
        if let id = options.id { state.memories[id] = memory }
        return memory
      } catch {
        throw problem(of: error, ram: ram) ?? .map(error)
      }
    }
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
    for memory in state.withLock({ Array($0.memories.values) }) { memory.peers.resetBuses() }
  }

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

  /// Lets go of an iommufd object that no device names any more: RAM is no longer pinned for it.
  func remove(_ id: Identifier) {
    // Let go with the lock released, as its end waits for a thread.
    let gone = state.withLock { $0.memories.removeValue(forKey: id) }
    _ = gone
  }

  /// Lets go of everything but the counts; the devices go first.
  func removeAll() {
    let gone = state.withLock { state in
      defer { state.memories = [:] }
      return state.memories
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
    /// The host wants the device back: it is taken from the guest.
    case request
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
