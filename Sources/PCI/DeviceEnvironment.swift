import Hardware
import Synchronization

/// One device's ways out and in: its DMA ports, workers, timers, BAR regions and interrupts come from here or are
/// recorded here, so that `Function.revoke` ends all of them, in one order for every device.
///
/// An access of the device's registers is counted from before it looks whether the device is refused until it has left
/// the model; it costs two atomic additions. Whatever is handed out is handed out while the device is built.
///
/// Lock order: `records` is a leaf.
public final class DeviceEnvironment: Sendable {
  private struct Records {
    var workers: [DeviceWorker] = []
    var ports: [RequestsInFlight] = []
    var requestPorts: [any RequestPort] = []
    var stops: [@Sendable () -> Void] = []
    var releases: [@Sendable () -> Void] = []
  }

  /// What the board gives every function.
  public let surroundings: PCIEnvironment
  private let requester: Requester
  let gate = DeviceGate()
  /// Revocations come one after the other; whether there was one.
  let revocation = Mutex(false)
  private let records = Mutex(Records())

  init(_ surroundings: PCIEnvironment, requester: Requester) {
    self.surroundings = surroundings
    self.requester = requester
  }

  public var memoryBus: AddressBus { surroundings.memoryBus }
  public var ioBus: AddressBus { surroundings.ioBus }
  /// The port that the function is below; nil on bus 0.
  public var upstream: RootPort? { surroundings.upstream }

  /// Whether the device is gone as far as the guest can tell.
  public var isRefused: Bool { gate.isClosed }

  // MARK: What a device asks for

  /// The port of the function's requests, through the IOMMU where one stands before it.
  public func makePort() -> any DMAPort { recorded(surroundings.remapper.makePort(for: requester)) }

  /// A port past the IOMMU: addresses are guest physical.
  public func makeDirectPort() -> any DMAPort {
    recorded(DirectDMAPort(memory: surroundings.memory, requester: requester))
  }

  /// Requests with and without PASID, translation requests and page requests.
  public func makeRequestPort() -> any RequestPort {
    let port = surroundings.remapper.makeRequestPort(for: requester)
    records.withLock { $0.requestPorts.append(port) }
    return port
  }

  private func recorded(_ port: any DMAPort) -> any DMAPort {
    let requests = port.inFlight
    records.withLock { $0.ports.append(requests) }
    return port
  }

  /// A worker that has no doorbell and starts its handler no more once the device is refused; it ends with the device.
  public func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
    let made = surroundings.workers.makeWorker(name: name) { [gate] in
      if !gate.isClosed { handler() }
    }
    let worker = DeviceWorker(made, gate: gate)
    records.withLock { $0.workers.append(worker) }
    return worker
  }

  /// The timer as the device is to use it: what it calls late, it calls no more. A handler that runs is an access in
  /// flight, so it does not wait for what a revocation waits for.
  public func timer(_ timer: any OneShotTimer) -> any OneShotTimer { DeviceTimer(timer, gate: gate) }

  /// Records what else runs for the device: `stop` is called with its workers' and returns when it has ended.
  public func onStop(_ stop: @escaping @Sendable () -> Void) { records.withLock { $0.stops.append(stop) } }

  /// Records what the rest of the board holds of the device: `release` is called when nothing of the device is in
  /// flight, the last one recorded first.
  public func onRelease(_ release: @escaping @Sendable () -> Void) { records.withLock { $0.releases.append(release) } }

  // MARK: Its end

  /// Guest writes reach no worker past the bus any more. Waits for nothing: what another thread sets at this moment, that
  /// thread takes back.
  func withdrawDoorbells() {
    for worker in records.withLock({ $0.workers }) { worker.withdrawDoorbell() }
  }

  /// Returns when nothing of the device is in flight: accesses of its registers first, as they may wake workers and make
  /// requests; then its workers; then its requests.
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
  }

  /// Lets go of what was recorded.
  func release() {
    let releases = records.withLock { records in
      defer { records = Records() }
      return records.releases
    }
    for release in releases.reversed() { release() }
  }
}

/// Whether a device may be reached, and who is at it.
final class DeviceGate: Sendable {
  private let closed = Atomic<Bool>(false)
  /// Accesses of the device's registers, by CPUs and by code that acts for them.
  let accesses = RequestsInFlight()

  var isClosed: Bool { closed.load(ordering: .sequentiallyConsistent) }

  func close() { closed.store(true, ordering: .sequentiallyConsistent) }

  /// Begins an access.
  /// - Returns: what `leave` wants back; nil where the device is refused.
  @inline(__always)
  func enter() -> RequestsInFlight.Phase? {
    // Counted first: an access that does not see the gate closed is one that a drain after the closing waits for.
    let phase = accesses.begin()
    if !isClosed { return phase }
    accesses.end(phase)
    return nil
  }

  @inline(__always)
  func leave(_ phase: RequestsInFlight.Phase) { accesses.end(phase) }
}

/// A worker as its device has it.
private final class DeviceWorker: QueueWorker {
  private let worker: any QueueWorker
  private let gate: DeviceGate
  /// Held while the doorbell moves, which may take a host call.
  private let doorbell = Mutex<Void>(())

  init(_ worker: any QueueWorker, gate: DeviceGate) {
    self.worker = worker
    self.gate = gate
  }

  func wake() { if !gate.isClosed { worker.wake() } }

  func setDoorbell(at address: UInt64?) {
    doorbell.withLock { _ in worker.setDoorbell(at: gate.isClosed ? nil : address) }
    // Either `withdrawDoorbell` finds the lock free after this, or this finds the gate closed.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if gate.isClosed { withdrawDoorbell() }
  }

  /// With the gate closed. Where the lock is taken, its holder comes here next.
  func withdrawDoorbell() { _ = doorbell.withLockIfAvailable { _ in worker.setDoorbell(at: nil) } }

  func stop() { worker.stop() }
}

/// A timer as its device has it.
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
