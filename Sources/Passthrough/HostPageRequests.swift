import Hardware
import Linux
import Synchronization
import VFIO

/// Passes a device's page requests on to the guest.
protocol PageRequestTaker: AnyObject, Sendable {
  /// Takes one request. Called in the device's order, on the queue's thread. Must not wait, and must not take the locks
  /// of the unit's invalidation queue and host bindings.
  func take(_ request: PageRequest) -> PageRequestOutcome

  /// Handles a failure of the host's queue, which cannot be read any more. The device must be attached to a table
  /// without a queue; the kernel then answers the requests that are still in the queue.
  func queueFailed(_ error: SystemError)
}

/// Passes page requests from the kernel's fault queue to the guests of its devices, and the responses back. Each group
/// gets one response: from the guest, from its unit, or from this object if neither will send one.
///
/// When the table of a device or of one of its PASIDs is replaced, the kernel answers the outstanding groups of that
/// table itself, and may reuse their cookies for other groups. So a change of table (`changingTable`) holds the lock
/// that reading and answering hold: the change forgets the outstanding groups, and affects no request that is read
/// later.
///
/// A request that was read before a change may not have been passed on yet. It is passed on only while its group is
/// outstanding, and the change waits for the request that is being passed on: so after the change no request of the
/// former table enters the guest's queue.
///
/// The outstanding groups are bounded: each device has at most one for each group index and attached PASID, and one
/// without PASID. The kernel's limit of the device's outstanding requests is far lower.
///
/// Lock order: `passing`, then `state`. `state` is held across calls of the kernel, but not across calls of the machine:
/// no taker is called with it held. `passing` is held while a taker takes one request. Changes of tables and
/// resets wait for that, with the locks of the unit's queue and bindings held, so a taker must need neither, and must
/// not wait.
final class HostPageRequests: Sendable {
  /// The values by which a response names a group.
  fileprivate struct Group: Hashable {
    let device: UInt32
    /// The group index as the guest sees it.
    let index: UInt16
    let pasid: UInt32?

    /// The host uses the table of requests without PASID for those with PASID 0, too.
    var usesTableWithoutPASID: Bool { pasid ?? 0 == 0 }
  }
  fileprivate struct State {
    /// The taker of each device.
    var takers: [UInt32: any PageRequestTaker] = [:]
    /// For each device with a first stage, the PASID of the entry that holds the table (RID_PASID).
    var ridPASIDs: [UInt32: UInt32] = [:]
    /// The PASIDs of each device that are attached to tables with the queue.
    var pasids: [UInt32: Set<UInt32>] = [:]
    /// The outstanding groups, indexed both ways.
    var cookies: [Group: UInt32] = [:]
    var groups: [UInt32: Group] = [:]
    /// The reason why the queue cannot be read any more.
    var problem: SystemError?
  }

  /// One request that was read, and its taker.
  fileprivate struct Arrival {
    let request: PageRequest
    let group: Group
    let cookie: UInt32
    /// The taker of the request; nil if the request is refused.
    let taker: (any PageRequestTaker)?
  }

  let queue: FaultQueue
  private let state = Mutex(State())
  private let passing = Mutex(())

  init(of iommufd: IOMMUFD) throws(SystemError) { queue = try FaultQueue(of: iommufd) }

  // MARK: Devices

  /// Sends a device's requests to its guest from now on. If the queue has already failed, notifies the taker at once:
  /// its device could otherwise be attached to a table with the queue that is no longer read.
  func add(_ taker: any PageRequestTaker, for device: UInt32) {
    let problem = state.withLock { state in
      state.takers[device] = taker
      return state.problem
    }
    if let problem { taker.queueFailed(problem) }
  }

  /// Answers a device's outstanding groups and forgets the device. On return, no request of it is being passed on.
  func remove(_ device: UInt32) {
    state.withLock { state in
      state.takers[device] = nil
      state.ridPASIDs[device] = nil
      state.pasids[device] = nil
      answerAll(of: device, &state)
    }
    waitForPassing()
  }

  /// Waits until the request that is being passed on has been taken.
  private func waitForPassing() { passing.withLock { _ in } }

  /// Calls `body`, which attaches a device's requests without PASID to another table or detaches them, with the lock
  /// held. On return, no such request that was read before is being passed on, and none will be.
  /// - Parameter ridPASID: the PASID of the entry that holds the table, if it is a first stage.
  func changingTable(of device: UInt32, ridPASID: UInt32?, _ body: () throws(SystemError) -> Void) throws(SystemError) {
    try state.withLock { (state) throws(SystemError) in
      try body()
      // The kernel has answered the outstanding groups.
      state.forget { $0.device == device && $0.usesTableWithoutPASID }
      state.ridPASIDs[device] = ridPASID
    }
    waitForPassing()
  }

  /// The same for a device's requests with one PASID other than 0.
  /// - Parameter passesOn: whether the table that `body` attaches has the queue.
  func changingTable(
    of device: UInt32, pasid: UInt32, passesOn: Bool, _ body: () throws(SystemError) -> Void
  ) throws(SystemError) {
    try state.withLock { (state) throws(SystemError) in
      try body()
      state.forget { $0.device == device && $0.pasid == pasid }
      if passesOn {
        state.pasids[device, default: []].insert(pasid)
      } else {
        state.pasids[device]?.remove(pasid)
      }
    }
    waitForPassing()
  }

  func hasOutstanding(_ device: UInt32) -> Bool { state.withLock { $0.cookies.keys.contains { $0.device == device } } }

  // MARK: Requests

  /// Reads the queue and passes its requests to the guests. Called by one thread at a time.
  func serve() {
    var arrivals: [Arrival] = []
    var failed: ([any PageRequestTaker], SystemError)?
    state.withLock { state in
      guard state.problem == nil else { return }
      do throws(SystemError) {
        arrivals = state.arrivals(of: try queue.read())
      } catch {
        state.problem = error
        failed = (Array(state.takers.values), error)
      }
    }
    for arrival in arrivals {
      // If a change of the table has answered the group meanwhile, nothing is left to do.
      guard let outcome = pass(arrival) else { continue }
      guard arrival.request.isLastInGroup else { continue }
      switch outcome {
      case .queued: break
      case .answered(let code): answer(arrival, code)
      case .discarded: answer(arrival, .invalidRequest)
      }
    }
    if let (takers, error) = failed {
      for taker in takers { taker.queueFailed(error) }
    }
  }

  /// Passes a request on, unless its group is no longer outstanding.
  /// - Returns: nil if the request was not passed on, because its group has been answered.
  private func pass(_ arrival: Arrival) -> PageRequestOutcome? {
    // A request without a taker was never recorded: it is refused.
    guard let taker = arrival.taker else { return .discarded }
    return passing.withLock { _ in
      let isOutstanding = state.withLock { $0.groups[arrival.cookie] == arrival.group }
      return isOutstanding ? taker.take(arrival.request) : nil
    }
  }

  /// Whether the queue cannot be read any more.
  var isBroken: Bool { state.withLock { $0.problem != nil } }

  private func answer(_ arrival: Arrival, _ code: PageGroupResponse.Code) {
    state.withLock { state in
      // A request without a taker was never recorded, and is answered directly. A recorded one that is no longer
      // outstanding has been answered.
      let isForgotten = arrival.taker != nil && state.groups[arrival.cookie] != arrival.group
      guard !isForgotten else { return }
      state.remove(arrival.cookie)
      respond(to: arrival.cookie, code)
    }
  }

  /// Passes the guest's response on to the kernel.
  /// - Returns: whether the group was outstanding. If so, it has been answered.
  func respond(_ response: PageGroupResponse, from device: UInt32) -> Bool {
    state.withLock { state in
      let group = Group(device: device, index: response.groupIndex, pasid: response.pasid)
      guard let cookie = state.cookies[group] else { return false }
      state.remove(cookie)
      respond(to: cookie, response.code)
      return true
    }
  }

  /// Answers a device's outstanding groups as invalid, because nothing else will. On return, no request that was read
  /// before is being passed on, and none will be.
  func answerAll(of device: UInt32) {
    state.withLock { answerAll(of: device, &$0) }
    waitForPassing()
  }

  private func answerAll(of device: UInt32, _ state: inout State) {
    for cookie in state.forget(where: { $0.device == device }) { respond(to: cookie, .invalidRequest) }
  }

  /// Answers a group. The kernel has no Response Failure, which would stop a device that it shares with others: the
  /// answer is Invalid Request instead.
  private func respond(to cookie: UInt32, _ code: PageGroupResponse.Code) {
    // If the kernel refuses the answer, it has already answered the group itself.
    try? queue.respond(to: cookie, code == .success ? .success : .invalid)
  }
}

extension HostPageRequests.State {
  /// Records the requests that were read.
  fileprivate mutating func arrivals(of requests: [FaultQueue.PageRequest]) -> [HostPageRequests.Arrival] {
    requests.map { request in
      let index = UInt16(truncatingIfNeeded: request.group) & 0x1ff
      let group = HostPageRequests.Group(device: request.device, index: index, pasid: request.pasid)
      return HostPageRequests.Arrival(
        request: PageRequest(request, groupIndex: index), group: group, cookie: request.cookie,
        taker: taker(of: group, cookie: request.cookie))
    }
  }

  /// Finds the taker of a group, and records the group as outstanding.
  /// - Returns: nil if the request is refused.
  private mutating func taker(of group: HostPageRequests.Group, cookie: UInt32) -> (any PageRequestTaker)? {
    // The kernel collects a group by its index alone, so its requests may have different PASIDs. The last one decides
    // whose group it is; those with another PASID are not passed on.
    if let former = groups[cookie], former != group { remove(cookie) }
    guard let taker = takers[group.device] else { return nil }
    // The host uses one table of the device, that of the guest's RID_PASID entry, for requests without PASID and with
    // PASID 0. A request with PASID 0 fits only if RID_PASID is 0, too.
    if group.pasid == 0, ridPASIDs[group.device] != 0 { return nil }
    if let pasid = group.pasid, pasid != 0, pasids[group.device]?.contains(pasid) != true { return nil }
    // An outstanding index must not be used again: the guest could not distinguish the two groups.
    if let former = cookies[group], former != cookie { return nil }
    cookies[group] = cookie
    groups[cookie] = group
    return taker
  }

  fileprivate mutating func remove(_ cookie: UInt32) {
    if let group = groups.removeValue(forKey: cookie) { cookies[group] = nil }
  }

  /// Removes outstanding groups.
  /// - Returns: their cookies.
  @discardableResult
  fileprivate mutating func forget(where isConcerned: (HostPageRequests.Group) -> Bool) -> [UInt32] {
    let gone = groups.filter { isConcerned($0.value) }.map(\.key)
    for cookie in gone { remove(cookie) }
    return gone
  }
}

extension PageRequest {
  fileprivate init(_ request: FaultQueue.PageRequest, groupIndex: UInt16) {
    self.init(
      address: request.address,
      prefix: request.pasid.map {
        PASIDPrefix(
          pasid: $0, isPrivileged: request.permissions.contains(.privileged),
          executes: request.permissions.contains(.execute))
      }, reads: request.permissions.contains(.read), writes: request.permissions.contains(.write),
      isLastInGroup: request.isLastOfGroup, groupIndex: groupIndex)
  }
}
