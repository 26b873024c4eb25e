import Hardware
import Linux
import Synchronization
import VFIO

/// Who takes a passed-through device's page requests to its guest.
protocol PageRequestTaker: AnyObject, Sendable {
  /// In the device's order, on the queue's thread.
  func take(_ request: PageRequest) -> PageRequestOutcome

  /// The host's queue cannot be read any more: the device is to be put on a table without one, by which the kernel
  /// answers what the queue still has.
  func queueFailed(_ error: SystemError)
}

/// Page requests on their way from the kernel's fault queue to the guests of its devices, and the responses on their way
/// back: one response for each group, from the guest, from its unit, or from here where neither will give one.
///
/// A cookie of the kernel's is free, and soon another group's, once the kernel answers by itself, as it does when a
/// device's table is replaced. So a change of table (`changingTable`) holds the lock that reading and answering hold:
/// what is outstanding then is forgotten, and nothing read later is.
///
/// What is outstanding is bounded: of each device one group for each index that its requests can have.
///
/// Lock order: `state` is held across calls of the kernel, and nothing of the machine's. No taker is called with it held.
final class HostPageRequests: Sendable {
  /// What a response names.
  fileprivate struct Group: Hashable {
    let device: UInt32
    let index: UInt16
    /// As the guest has it.
    let pasid: UInt32?
  }
  fileprivate struct State {
    /// By device, as the others.
    var takers: [UInt32: any PageRequestTaker] = [:]
    /// The PASID whose entry a device's table comes from (RID_PASID), where it has a first stage.
    var ridPASIDs: [UInt32: UInt32] = [:]
    /// What is outstanding, both ways.
    var cookies: [Group: UInt32] = [:]
    var groups: [UInt32: Group] = [:]
    /// Why the queue cannot be read any more.
    var problem: SystemError?
  }

  /// One request, read, and what is to be done with it.
  fileprivate struct Arrival {
    let request: PageRequest
    let group: Group
    let cookie: UInt32
    /// nil: nobody takes it.
    let taker: (any PageRequestTaker)?
  }

  let queue: FaultQueue
  private let state = Mutex(State())

  init(of iommufd: IOMMUFD) throws(SystemError) { queue = try FaultQueue(of: iommufd) }

  // MARK: Devices

  /// From now on a device's requests go to its guest. One that comes when the queue has failed hears so at once, as its
  /// device may be put on a table with the queue otherwise, which nobody reads.
  func add(_ taker: any PageRequestTaker, for device: UInt32) {
    let problem = state.withLock { state in
      state.takers[device] = taker
      return state.problem
    }
    if let problem { taker.queueFailed(problem) }
  }

  /// Answers what is outstanding, and forgets the device.
  func remove(_ device: UInt32) {
    state.withLock { state in
      state.takers[device] = nil
      state.ridPASIDs[device] = nil
      answerAll(of: device, &state)
    }
  }

  /// Has `body` put a device on another table, or on none.
  /// - Parameter ridPASID: the PASID of the entry that the table comes from, where it is a first stage.
  func changingTable(of device: UInt32, ridPASID: UInt32?, _ body: () throws(SystemError) -> Void) throws(SystemError) {
    try state.withLock { (state) throws(SystemError) in
      try body()
      // The kernel has answered them.
      state.forget(device)
      state.ridPASIDs[device] = ridPASID
    }
  }

  func hasOutstanding(_ device: UInt32) -> Bool { state.withLock { $0.cookies.keys.contains { $0.device == device } } }

  // MARK: Requests

  /// Takes what the queue has to the guests. Called by one thread at a time.
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
      let outcome = arrival.taker?.take(arrival.request) ?? .discarded
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

  /// Whether the queue cannot be read any more.
  var isBroken: Bool { state.withLock { $0.problem != nil } }

  private func answer(_ arrival: Arrival, _ code: PageGroupResponse.Code) {
    state.withLock { state in
      // One that was never outstanding is answered past the books; one that is no more has been answered.
      let isForgotten = arrival.taker != nil && state.groups[arrival.cookie] != arrival.group
      guard !isForgotten else { return }
      state.remove(arrival.cookie)
      respond(to: arrival.cookie, code)
    }
  }

  /// The guest's response.
  /// - Returns: whether there is such a group, which is answered.
  func respond(_ response: PageGroupResponse, from device: UInt32) -> Bool {
    state.withLock { state in
      let group = Group(device: device, index: response.groupIndex, pasid: response.pasid)
      guard let cookie = state.cookies[group] else { return false }
      state.remove(cookie)
      respond(to: cookie, response.code)
      return true
    }
  }

  /// Answers what is outstanding of a device as invalid: nobody else will.
  func answerAll(of device: UInt32) {
    state.withLock { answerAll(of: device, &$0) }
  }

  private func answerAll(of device: UInt32, _ state: inout State) {
    for cookie in state.forget(device) { respond(to: cookie, .invalidRequest) }
  }

  /// The kernel knows no failure beside an invalid request: that would stop a device which it shares with others.
  private func respond(to cookie: UInt32, _ code: PageGroupResponse.Code) {
    // What it refuses, it has answered already.
    try? queue.respond(to: cookie, code == .success ? .success : .invalid)
  }
}

extension HostPageRequests.State {
  /// Enters what was read in the books.
  fileprivate mutating func arrivals(of requests: [FaultQueue.PageRequest]) -> [HostPageRequests.Arrival] {
    requests.map { request in
      let index = UInt16(truncatingIfNeeded: request.group) & 0x1ff
      let group = HostPageRequests.Group(device: request.device, index: index, pasid: request.pasid)
      return HostPageRequests.Arrival(
        request: PageRequest(request, groupIndex: index), group: group, cookie: request.cookie,
        taker: taker(of: group, cookie: request.cookie))
    }
  }

  /// - Returns: nil for nobody.
  private mutating func taker(of group: HostPageRequests.Group, cookie: UInt32) -> (any PageRequestTaker)? {
    guard let taker = takers[group.device] else { return nil }
    // The host has the device's own table under PASID 0, and no other.
    if let pasid = group.pasid, pasid != 0 || ridPASIDs[group.device] != 0 { return nil }
    // An index that is outstanding is not to be used again: the guest could not tell the two apart.
    if let former = cookies[group], former != cookie { return nil }
    cookies[group] = cookie
    groups[cookie] = group
    return taker
  }

  fileprivate mutating func remove(_ cookie: UInt32) {
    if let group = groups.removeValue(forKey: cookie) { cookies[group] = nil }
  }

  /// - Returns: cookies of what was outstanding.
  @discardableResult
  fileprivate mutating func forget(_ device: UInt32) -> [UInt32] {
    let gone = groups.filter { $0.value.device == device }.map(\.key)
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
