import Glibc
import Linux
import Synchronization
import VFIO
import VTd

/// The guest's memory for the devices of one iommufd object: RAM mapped once, and over it as few second stages as
/// their IOMMUs allow.
///
/// Nothing is mapped read-only, which a nesting parent may not have where the host's IOMMU has erratum 772415; Linux
/// 6.12 takes every one to have it.
///
/// Its devices hold it: with the last of them all of this goes, and RAM is no longer pinned.
///
/// Lock order: `state`, then that of the peers. It is not held while the kernel pins or maps RAM: a CPU that invalidates
/// wants it.
final class PassthroughMemory: Sendable {
  /// A parent, and a guest's table on it.
  private struct NestedKey: Hashable {
    let parent: UInt32
    let stage: GuestFirstStage
    /// Its fault queue's descriptor.
    let queue: Int32?
  }
  private struct WeakNested {
    weak var table: NestedTable?
  }
  /// A second stage goes with the last device on it.
  private struct WeakParent {
    weak var table: HardwarePageTable?
  }
  private struct State {
    var parents: [WeakParent] = []
    var nested: [NestedKey: WeakNested] = [:]
    var pageRequests: HostPageRequestThread?
    var nothing: IOAddressSpace?
    /// Why a BAR is not in it, and whose, by the kernel's number.
    var peerProblem: (device: UInt32, error: SystemError)?
    var hasToldPeerProblem = false
  }

  let iommufd: IOMMUFD
  /// The iommufd object's id.
  let name: String?
  /// The functions that its devices are to the guest.
  let peers = PassthroughPeers()
  let space: IOAddressSpace
  private let state = Mutex(State())

  /// Pins all of RAM.
  init(of iommufd: IOMMUFD, name: String? = nil, memory: GuestMemory) throws(SystemError) {
    self.iommufd = iommufd
    self.name = name
    space = try IOAddressSpace(of: iommufd, backing: memory.pin())
    for region in memory.regions {
      try space.map(region.address, size: region.size, to: memory.hostAddress(of: region), [.read, .write])
    }
  }

  /// Attaches a device to the guest's memory, so that first stages of the guest may come on top.
  /// - Returns: what it is attached to.
  func attachToParent(_ device: VFIODevice) throws(SystemError) -> HardwarePageTable {
    // No other one is made meanwhile: devices are built one after the other. So the lock is not held while the kernel
    // maps RAM, which takes long.
    for parent in state.withLock({ $0.parents.compactMap(\.table) }) {
      do throws(SystemError) {
        try device.attach(to: parent)
        return parent
      } catch {
        // Another IOMMU, or one that differs: it gets a parent of its own.
        guard error.code == EINVAL else { throw error }
      }
    }
    let parent = try HardwarePageTable(parentOver: space, for: device.id)
    try device.attach(to: parent)
    state.withLock { state in
      state.parents.removeAll { $0.table == nil }
      state.parents.append(WeakParent(table: parent))
    }
    return parent
  }

  // MARK: Peers

  /// A device's BAR is not to be had among the guest's memory.
  func notePeerProblem(_ error: SystemError, of device: UInt32) {
    state.withLock { $0.peerProblem = $0.peerProblem ?? (device, error) }
  }

  /// Says why a device's BARs are out of the others' reach, the first time that this is asked with others there.
  func tellPeerProblem() {
    guard peers.all.count > 1 else { return }
    let problem = state.withLock { state -> (function: VFIOPCI, error: SystemError)? in
      guard !state.hasToldPeerProblem, let problem = state.peerProblem else { return nil }
      guard let function = peers.function(problem.device) else {
        // Gone, or not there yet: it has it noted again when it is placed.
        state.peerProblem = nil
        return nil
      }
      state.hasToldPeerProblem = true
      return (function, problem.error)
    }
    if let problem { problem.function.tell(.outOfPeersReach(problem.error)) }
  }

  /// How many second stages the devices need.
  var parentCount: Int { state.withLock { $0.parents.count { $0.table != nil } } }

  /// The host's table for a first stage of the guest: one for all devices on the same parent.
  /// - Parameter queue: where page requests go that it does not answer; nil: the host refuses them.
  func nestedTable(
    _ stage: GuestFirstStage, on parent: HardwarePageTable, for device: VFIODevice, queue: FaultQueue? = nil
  ) throws(SystemError) -> NestedTable {
    try state.withLock { (state) throws(SystemError) in
      let key = NestedKey(parent: parent.id, stage: stage, queue: queue?.descriptor)
      if let table = state.nested[key]?.table { return table }
      let table = NestedTable(
        try HardwarePageTable(nesting: .init(stage), on: parent, for: device.id, faults: queue))
      state.nested = state.nested.filter { $0.value.table != nil }
      state.nested[key] = WeakNested(table: table)
      return table
    }
  }

  /// Page requests of all its devices, made and served from the first call on.
  func pageRequests() throws(SystemError) -> HostPageRequests {
    let (requests, former) = try state.withLock { (state) throws(SystemError) in
      let former = state.pageRequests
      if let former, !former.requests.isBroken { return (former.requests, nil as HostPageRequestThread?) }
      let thread = try HostPageRequestThread(of: iommufd)
      state.pageRequests = thread
      return (thread.requests, former)
    }
    // Let go with the lock released: its end waits for a thread that may be at a table of ours.
    _ = former
    return requests
  }

  /// An address space without memory: a device attached to it reaches nothing.
  func nothing() throws(SystemError) -> IOAddressSpace {
    try state.withLock { (state) throws(SystemError) in
      if let space = state.nothing { return space }
      let space = try IOAddressSpace(of: iommufd)
      state.nothing = space
      return space
    }
  }
}

/// A guest's first stage on the host's IOMMU.
final class NestedTable: HostFirstStage {
  let table: HardwarePageTable
  private let problem = Mutex<SystemError?>(nil)

  init(_ table: HardwarePageTable) { self.table = table }

  /// Why it did not take an invalidation, after which nobody goes by it any more.
  var invalidationProblem: SystemError? { problem.withLock { $0 } }

  func invalidate(_ invalidations: [FirstStageInvalidation]) throws(HostRefusal) {
    do throws(SystemError) {
      try table.invalidate(
        invalidations.map { .init(address: $0.address, pages: $0.pageCount, leafOnly: $0.leafOnly) })
    } catch {
      problem.withLock { $0 = error }
      throw HostRefusal()
    }
  }
}

extension HardwarePageTable.FirstStage {
  fileprivate init(_ stage: GuestFirstStage) {
    self.init(
      root: stage.root, addressWidth: UInt32(stage.addressWidth),
      supervisorRequestEnable: stage.supervisorRequestEnable,
      extendedAccessedFlagEnable: stage.extendedAccessedFlagEnable, writeProtectEnable: stage.writeProtectEnable)
  }
}
