import Hardware
import Synchronization

/// Connects one device to the machine: makes or records the device's DMA ports, workers, timers and other resources, so
/// that `Function.revoke` ends all of them, in the same order for every device. A device obtains its ports and workers
/// while it is built.
///
/// Each access to the device's registers is counted as in flight. The count begins before the check whether the device
/// is refused, and ends when the model returns. It costs two atomic additions.
///
/// Lock order: code that holds `records` takes no other lock.
public final class DeviceEnvironment: Sendable {
  private struct Records {
    var workers: [DeviceWorker] = []
    var ports: [RequestsInFlight] = []
    var requestPorts: [any RequestPort] = []
    var remotes: [any RemoteDMAPort] = []
    var stops: [@Sendable () -> Void] = []
    var releases: [@Sendable () -> Void] = []
  }

  /// The services that the board offers to every function.
  public let surroundings: PCIEnvironment
  private let requester: Requester
  let gate = DeviceGate()
  /// Whether the function has been revoked. The lock serializes revocations.
  let revocation = Mutex(false)
  private let records = Mutex(Records())

  init(_ surroundings: PCIEnvironment, requester: Requester) {
    self.surroundings = surroundings
    self.requester = requester
  }

  public var memoryBus: AddressBus { surroundings.memoryBus }
  public var ioBus: AddressBus { surroundings.ioBus }
  /// The port above the function; nil on bus 0.
  public var upstream: RootPort? { surroundings.upstream }

  /// Whether the device is unreachable for the guest: `Function.refuse` was called.
  public var isRefused: Bool { gate.isClosed }

  // MARK: Resources of the device

  /// Makes a port for the function's requests, through the IOMMU if there is one.
  public func makePort() -> any DMAPort { recorded(surroundings.remapper.makePort(for: requester)) }

  /// Makes a port that bypasses the IOMMU: its addresses are guest physical.
  public func makeDirectPort() -> any DMAPort {
    recorded(DirectDMAPort(memory: surroundings.memory, requester: requester))
  }

  /// Makes a port for requests with and without PASID, translation requests and page requests.
  public func makeRequestPort() -> any RequestPort {
    let port = surroundings.remapper.makeRequestPort(for: requester)
    records.withLock { $0.requestPorts.append(port) }
    return port
  }

  /// Connects the cache of a remote datapath that acts for the function. The cache loses all mappings when the function
  /// is reset, when Bus Master Enable is cleared, here or in a bridge above, and when the requester ID changes. A
  /// revocation waits for the misses in flight and disconnects the cache. The device stops the datapath itself: see
  /// `onStop`.
  /// - Returns: nil if no IOMMU is between the function and memory, so that its addresses are guest physical.
  public func connect(_ remote: any RemoteIOTLB) -> (any RemoteDMAPort)? {
    guard let port = surroundings.remapper.connect(remote, for: requester) else { return nil }
    records.withLock { records in
      records.remotes.removeAll { !$0.isConnected }
      records.remotes.append(port)
    }
    return port
  }

  /// Takes all mappings from the remote caches. Called after a change of the function's requester ID or of its right to
  /// make requests, with no lock held.
  func forgetRemoteMappings() {
    for port in records.withLock({ $0.remotes }) { port.forgetAll() }
  }

  private func recorded(_ port: any DMAPort) -> any DMAPort {
    let requests = port.inFlight
    records.withLock { $0.ports.append(requests) }
    return port
  }

  /// Makes a worker. Once the device is refused, the worker gets no new doorbell and no longer starts its handler.
  /// `drain` stops the worker.
  public func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
    let made = surroundings.workers.makeWorker(name: name) { [gate] in
      if !gate.isClosed { handler() }
    }
    let worker = DeviceWorker(made, gate: gate)
    records.withLock { $0.workers.append(worker) }
    return worker
  }

  /// Wraps a timer for use by the device: its handler no longer runs once the device is refused. A running handler
  /// counts as an access in flight, so it must not wait for anything that a revocation waits for.
  public func timer(_ timer: any OneShotTimer) -> any OneShotTimer { DeviceTimer(timer, gate: gate) }

  /// Records another activity of the device. `drain` calls `stop` after it has stopped the workers; `stop` returns when
  /// the activity has ended.
  public func onStop(_ stop: @escaping @Sendable () -> Void) { records.withLock { $0.stops.append(stop) } }

  /// Records a resource that the rest of the board holds for the device. When nothing of the device is in flight,
  /// `revoke` calls the `release` closures, the last recorded one first.
  public func onRelease(_ release: @escaping @Sendable () -> Void) { records.withLock { $0.releases.append(release) } }

  // MARK: Revocation

  /// Removes the workers' doorbells, so that the kernel no longer wakes workers for guest writes. Does not block: if
  /// another thread sets a doorbell at this moment, that thread removes it again.
  func withdrawDoorbells() {
    for worker in records.withLock({ $0.workers }) { worker.withdrawDoorbell() }
  }

  /// Waits until nothing of the device is in flight. The accesses to its registers come first, because they may wake
  /// workers and make requests. Then come its workers, then its requests.
  func drain() {
    let parking = surroundings.makeParking()
    gate.accesses.drain(parking: parking)
    let records = records.withLock { records in
      defer {
        records.workers = []
        records.stops = []
      }
      return records
    }
    for worker in records.workers { worker.stop() }
    for stop in records.stops { stop() }
    for port in records.ports { port.drain(parking: parking) }
    for port in records.requestPorts { port.drain(parking: parking) }
    for port in records.remotes { port.inFlight.drain(parking: parking) }
  }

  /// Disconnects the remote caches, calls the recorded `release` closures and drops the records.
  func release() {
    let records = records.withLock { records in
      defer { records = Records() }
      return records
    }
    for port in records.remotes { port.disconnect() }
    for release in records.releases.reversed() { release() }
  }
}

/// The gate before a device's registers: whether it is closed, and which accesses are inside.
final class DeviceGate: Sendable {
  private let closed = Atomic<Bool>(false)
  /// Accesses to the device's registers in flight, by vCPUs and by code that acts for them.
  let accesses = RequestsInFlight()

  var isClosed: Bool { closed.load(ordering: .sequentiallyConsistent) }

  func close() { closed.store(true, ordering: .sequentiallyConsistent) }

  /// Begins an access.
  /// - Returns: the argument for `leave`; nil if the gate is closed.
  @inline(__always)
  func enter() -> RequestsInFlight.Phase? {
    // Count the access before the check, so that a drain after the closing waits for each access that found the gate
    // open.
    let phase = accesses.begin()
    if !isClosed { return phase }
    accesses.end(phase)
    return nil
  }

  @inline(__always)
  func leave(_ phase: RequestsInFlight.Phase) { accesses.end(phase) }
}

/// A worker that obeys its device's gate.
private final class DeviceWorker: QueueWorker {
  private let worker: any QueueWorker
  private let gate: DeviceGate
  /// Held while the doorbell changes, which may make a host call.
  private let doorbell = Mutex<Void>(())

  init(_ worker: any QueueWorker, gate: DeviceGate) {
    self.worker = worker
    self.gate = gate
  }

  func wake() { if !gate.isClosed { worker.wake() } }

  func setDoorbell(at address: UInt64?) {
    doorbell.withLock { _ in worker.setDoorbell(at: gate.isClosed ? nil : address) }
    // Either a `withdrawDoorbell` on another thread finds the lock free, or this check finds the gate closed.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if gate.isClosed { withdrawDoorbell() }
  }

  /// Removes the doorbell, with the gate closed. If another thread holds the lock, that thread calls this afterwards.
  func withdrawDoorbell() { _ = doorbell.withLockIfAvailable { _ in worker.setDoorbell(at: nil) } }

  func lend() -> QueueNotifiers? { gate.isClosed ? nil : worker.lend() }
  func reclaim() { worker.reclaim() }

  func stop() { worker.stop() }
}

/// A timer that obeys its device's gate.
private final class DeviceTimer: OneShotTimer {
  private let timer: any OneShotTimer
  private let gate: DeviceGate

  init(_ timer: any OneShotTimer, gate: DeviceGate) {
    self.timer = timer
    self.gate = gate
  }

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    if gate.isClosed { return }
    timer.start(afterMilliseconds: milliseconds) { [gate] in
      guard let phase = gate.enter() else { return }
      defer { gate.leave(phase) }
      handler()
    }
  }
}
