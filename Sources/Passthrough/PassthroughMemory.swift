import Glibc
import Linux
import Synchronization
import VFIO
import VTd

/// The guest's memory for the devices of one iommufd object: RAM, which is mapped once, and on it as few second stages
/// as the devices' IOMMUs allow.
///
/// No mapping is read-only: a nesting parent must not have a read-only mapping if the host's IOMMU has erratum 772415,
/// and Linux 6.12 assumes the erratum for every IOMMU.
///
/// The devices hold this object: it is released with the last of them, and then RAM is unpinned.
///
/// Lock order: `state`, then that of the peers. `state` is not held while the kernel pins or maps RAM, because a CPU
/// that invalidates needs it.
final class PassthroughMemory: Sendable {
  /// The parent, the guest's first stage on it, and the fault queue.
  private struct NestedKey: Hashable {
    let parent: UInt32
    let stage: GuestFirstStage
    /// The descriptor of the fault queue.
    let queue: Int32?
  }
  private struct WeakNested {
    weak var table: NestedTable?
  }
  /// A weak reference: a second stage is released with the last device on it.
  private struct WeakParent {
    weak var table: HardwarePageTable?
  }
  private struct State {
    var parents: [WeakParent] = []
    var nested: [NestedKey: WeakNested] = [:]
    var pageRequests: HostPageRequestThread?
    var nothing: IOAddressSpace?
    /// The reason why a BAR is not mapped, and the kernel's number of its device.
    var peerProblem: (device: UInt32, error: SystemError)?
    var hasReportedPeerProblem = false
  }

  let iommufd: IOMMUFD
  /// The iommufd object's id.
  let name: String?
  /// The object's devices as functions of the guest.
  let peers = PassthroughPeers()
  let space: IOAddressSpace
  private let state = Mutex(State())

  /// Maps all of RAM, which pins it.
  init(of iommufd: IOMMUFD, name: String? = nil, memory: GuestMemory) throws(SystemError) {
    self.iommufd = iommufd
    self.name = name
    space = try IOAddressSpace(of: iommufd, backing: memory.pin())
    for region in memory.regions {
      try space.map(region.address, size: region.size, to: memory.hostAddress(of: region), [.read, .write])
    }
  }

  /// Attaches a device to the guest's memory by a second stage that can be the parent of the guest's first stages.
  /// - Parameter allowingPASIDs: whether PASIDs of the device should be attached later.
  /// - Returns: this second stage. It allows no PASIDs if the kernel refuses such tables.
  func attachToParent(_ device: VFIODevice, allowingPASIDs: Bool = false) throws(SystemError) -> HardwarePageTable {
    // Devices are built one after the other, so no other parent is made meanwhile. Do not hold the lock while the
    // kernel maps RAM, because that takes long.
    for parent in state.withLock({ $0.parents.compactMap(\.table) }) where parent.allowsPASIDs || !allowingPASIDs {
      do throws(SystemError) {
        try device.attach(to: parent)
        return parent
      } catch {
        // The device is behind another IOMMU that needs its own parent.
        guard error.code == EINVAL else { throw error }
      }
    }
    let parent: HardwarePageTable
    do throws(SystemError) {
      parent = try HardwarePageTable(parentOver: space, for: device.id, allowsPASIDs: allowingPASIDs)
    } catch {
      // Linux before 6.15, or an IOMMU without PASIDs.
      guard allowingPASIDs, error.code == EOPNOTSUPP || error.code == EINVAL else { throw error }
      return try attachToParent(device)
    }
    try device.attach(to: parent)
    state.withLock { state in
      state.parents.removeAll { $0.table == nil }
      state.parents.append(WeakParent(table: parent))
    }
    return parent
  }

  // MARK: Peers

  /// Records that a device's BAR cannot be mapped into the guest's memory.
  func recordPeerProblem(_ error: SystemError, of device: UInt32) {
    state.withLock { $0.peerProblem = $0.peerProblem ?? (device, error) }
  }

  /// Reports once why the other devices cannot reach a device's BARs, as soon as there are other devices.
  func reportPeerProblem() {
    guard peers.all.count > 1 else { return }
    let problem = state.withLock { state -> (function: VFIOPCI, error: SystemError)? in
      guard !state.hasReportedPeerProblem, let problem = state.peerProblem else { return nil }
      guard let function = peers.function(problem.device) else {
        // The function is gone or does not exist yet. A new function records its problem again when its BAR is placed.
        state.peerProblem = nil
        return nil
      }
      state.hasReportedPeerProblem = true
      return (function, problem.error)
    }
    if let problem {
      problem.function.report(.outOfPeersReach(problem.error, kernelRelease: HostCheck.runningKernelRelease()))
    }
  }

  /// The number of second stages that the devices use.
  var parentCount: Int { state.withLock { $0.parents.count { $0.table != nil } } }

  /// Returns the host's table for a first stage of the guest. All devices on the same parent share it.
  /// - Parameter queue: the fault queue for page requests; nil if the host refuses them.
  func nestedTable(
    _ stage: GuestFirstStage, on parent: HardwarePageTable, for device: VFIODevice, queue: FaultQueue? = nil
  ) throws(SystemError) -> NestedTable {
    try state.withLock { (state) throws(SystemError) in
      let key = NestedKey(parent: parent.id, stage: stage, queue: queue?.descriptor)
      // After a failed invalidation the host may still have old mappings of the table, so that it is replaced.
      if let table = state.nested[key]?.table, table.invalidationProblem == nil { return table }
      let table = NestedTable(
        try HardwarePageTable(nesting: .init(stage), on: parent, for: device.id, faults: queue))
      state.nested = state.nested.filter { $0.value.table != nil }
      state.nested[key] = WeakNested(table: table)
      return table
    }
  }

  /// Returns the fault queue of all devices. The first call creates the queue and starts its thread.
  func pageRequests() throws(SystemError) -> HostPageRequests {
    let (requests, former) = try state.withLock { (state) throws(SystemError) in
      let former = state.pageRequests
      if let former, !former.requests.isBroken { return (former.requests, nil as HostPageRequestThread?) }
      let thread = try HostPageRequestThread(of: iommufd)
      state.pageRequests = thread
      return (thread.requests, former)
    }
    // Release the queue without the lock: its end waits for the thread, which may need the lock for a table.
    _ = former
    return requests
  }

  /// Returns an address space without memory. A device that is attached to it can access nothing.
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

  /// The reason why the host refused an invalidation. The table is not used after that.
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
