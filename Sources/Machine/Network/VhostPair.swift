import Devices
import Glibc
import Hardware
import Linux
import Synchronization
import Vhost

/// One pair of queues that the kernel's vhost serves: ring 0 receives, ring 1 sends.
///
/// Packets move only while the link is up and the tap has the offloads that the driver negotiated. So a ring starts
/// without the tap, and is connected with it as soon as both are true.
///
/// Lock order: the transport's lock or a lock of the network device, then `state`, which is held across calls of the
/// kernel, each of which waits for work in progress on the rings at most. Failures are reported, and the unit is
/// called, without `state`.
final class VhostPair: Sendable {
  /// A queue that the kernel serves.
  struct Ring {
    let queue: DatapathQueue
    let translates: Bool
  }

  struct State {
    var rings: [Ring?] = [nil, nil]
    var isLinkUp = true
    var isHeld = false
    /// Whether the queue of misses is being emptied.
    var isPaused = false
    var isClosed = false
    /// Whether a ring met an error of its translation. The rings stay off until both start anew.
    var isCut = false
    /// Whether the kernel has ever translated on this file: it cannot stop that.
    var hasTranslated = false
    /// Rings whose failure the loop's thread reports.
    var failed: [DatapathQueue] = []

    var isConnected: Bool { isLinkUp && !isHeld && !isPaused && !isClosed && !isCut }
  }

  /// An eventfd that the kernel signals when it finds an invalid descriptor.
  private final class ErrorEvent: Sendable {
    let descriptor: EventDescriptor
    let registration = Mutex<EventLoop.Registration?>(nil)
    init() throws(SystemError) { descriptor = try EventDescriptor() }
    deinit { registration.withLock { $0?.cancel() } }
  }

  private let device: any VhostDevice
  private let tap: Int32
  private let memory: GuestMemory
  private let report: @Sendable (SystemError) -> Void
  private let errors: [ErrorEvent]
  private let translation: VhostTranslation
  /// Reports failures on the loop's thread, because callers hold locks that the report takes.
  private let failure: EventLoop.Job
  private let state = Mutex(State())

  init(
    _ device: any VhostDevice, tap: Int32, memory: GuestMemory, loop: EventLoop,
    report: @escaping @Sendable (SystemError) -> Void
  ) throws(SystemError) {
    self.device = device
    self.tap = tap
    self.memory = memory
    self.report = report
    errors = [try ErrorEvent(), try ErrorEvent()]
    translation = VhostTranslation(of: device, memory: memory, loop: loop)
    failure = EventLoop.Job(on: loop)
    failure.onRun { [weak self] in self?.reportFailures() }
    translation.setHandlers(
      VhostTranslation.Handlers(
        cut: { [weak self] in self?.cut() }, fail: { [weak self] in self?.cut() },
        pause: { [weak self] in self?.change { $0.isPaused = true } }, resume: { [weak self] in self?.resume() },
        kick: { [weak self] in self?.kick() }))
    for (ring, error) in errors.enumerated() {
      let registration = try loop.register(error.descriptor.rawValue, .readable) { [weak self] _ in
        self?.descriptorFailed(ring)
      }
      error.registration.withLock { $0 = registration }
    }
  }

  // MARK: Calls of the transport

  /// The ring features that the kernel must know if the driver has negotiated them. The other features are those of the
  /// device or of the tap.
  private static let ringFeatures: VirtioFeatures = [
    .indirectDescriptors, .eventIndex, .version1, .netMergeBuffers,
  ]

  func start(_ queue: DatapathQueue) throws(DatapathRefusal) {
    guard !state.withLock({ $0.isClosed }) else { throw .local }
    let translates: Bool
    do throws(SystemError) {
      translates = queue.usesTranslation ? try translation.connect(queue.connect) : false
    } catch {
      report(error)
      throw .local
    }
    var features = queue.features.intersection(Self.ringFeatures)
    if translates { features.insert(.accessPlatform) }
    guard features.rawValue & ~device.knownFeatures == 0, translates || !state.withLock({ $0.hasTranslated }) else {
      throw .local
    }
    guard let ring = ring(of: queue, translates) else { throw .failed }
    let number = queue.index % 2
    let problem = state.withLock { state -> SystemError? in
      do throws(SystemError) {
        if state.rings.allSatisfy({ $0 == nil }) {
          try device.setFeatures(features.rawValue)
          state.isCut = false
          if translates { state.hasTranslated = true }
        }
        try device.start(ring)
        state.rings[number] = Ring(queue: queue, translates: translates)
        if translates { translation.setLayout(queue.layout, of: number) }
        return nil
      } catch {
        return error
      }
    }
    do throws(SystemError) {
      if let problem { throw problem }
      try connect(number)
    } catch {
      _ = stop(number)
      // With translation, the usual cause is a ring that the guest has not mapped.
      if !translates || error.code != EFAULT { report(error) }
      throw translates ? .failed : .local
    }
  }

  /// Returns the ring as the kernel needs it; nil if an area is not in RAM.
  private func ring(of queue: DatapathQueue, _ translates: Bool) -> VhostNet.Ring? {
    let layout = queue.layout
    let number = queue.index % 2
    var ring = VhostNet.Ring(
      number: UInt32(number), size: layout.size, descriptors: layout.descriptorArea, available: layout.driverArea,
      used: layout.deviceArea, start: queue.startIndex, kick: queue.kick.descriptor, call: queue.call?.descriptor,
      error: errors[number].descriptor.rawValue)
    if translates { return ring }
    let areas = HostRing(
      size: layout.size, descriptors: layout.descriptorArea, available: layout.driverArea, used: layout.deviceArea,
      in: memory)
    guard let areas else { return nil }
    (ring.descriptors, ring.available, ring.used) = (areas.descriptors, areas.available, areas.used)
    return ring
  }

  /// - Returns: the index of the next entry of the available ring; nil if the kernel does not answer.
  func stop(_ ring: Int) -> UInt16? {
    state.withLock { state in
      state.rings[ring] = nil
      translation.setLayout(nil, of: ring)
      // An error of this session is none of the next one.
      defer { errors[ring].descriptor.take() }
      return try? device.stop(UInt32(ring))
    }
  }

  func setCall(_ call: Notifier?, ring: Int) {
    state.withLock { state in
      if state.rings[ring] != nil { try? device.setCall(call?.descriptor, of: UInt32(ring)) }
    }
  }

  /// Continues after the queue of misses was emptied.
  private func resume() {
    try? device.forgetMisses()
    change { $0.isPaused = false }
    kick()
  }

  /// Makes the kernel continue with both rings, so that it sends the misses that they still wait for.
  private func kick() {
    for ring in state.withLock({ $0.rings }) {
      if let ring { EventDescriptor.signal(ring.queue.kick.descriptor) }
    }
  }

  // MARK: The tap

  /// Changes whether packets move. On return of a change that stops them, none is in progress.
  func change(_ body: (inout State) -> Void) {
    let connects = state.withLock { state -> Bool in
      let wasConnected = state.isConnected
      body(&state)
      if wasConnected, !state.isConnected { disconnect(state) }
      return !wasConnected && state.isConnected
    }
    guard connects else { return }
    for number in errors.indices {
      do {
        try connect(number)
      } catch {
        reportFailure(of: [number])
      }
    }
  }

  /// Stops all packets for good, and releases the kernel's device once the transport has stopped the rings.
  func close() {
    change { $0.isClosed = true }
    translation.end()
  }

  private func disconnect(_ state: State) {
    for (number, ring) in state.rings.enumerated() where ring != nil {
      try? device.connect(UInt32(number), to: nil)
    }
  }

  /// Connects a running ring with the tap, if packets may move.
  private func connect(_ number: Int) throws(SystemError) {
    var attempts = 16
    while true {
      let ring = state.withLock { $0.isConnected ? $0.rings[number] : nil }
      guard let ring else { return }
      // The kernel accesses the used ring within the call, and then cannot ask for its translation.
      if ring.translates, !translation.prepare(ring.queue.layout.deviceArea) {
        throw SystemError("VHOST_NET_SET_BACKEND", code: EFAULT)
      }
      let problem = state.withLock { state -> SystemError? in
        guard state.isConnected, state.rings[number] != nil else { return nil }
        do throws(SystemError) {
          try device.connect(UInt32(number), to: tap)
          return nil
        } catch {
          errors[number].descriptor.take()
          return error
        }
      }
      guard let problem else { return }
      // The guest may have invalidated the translation since.
      attempts -= 1
      guard ring.translates, problem.code == EFAULT || problem.code == EAGAIN, attempts > 0 else { throw problem }
    }
  }

  // MARK: Failures

  private func reportFailure(of numbers: [Int]) {
    state.withLock { state in state.failed += numbers.compactMap { state.rings[$0]?.queue } }
    failure.schedule()
  }

  private func reportFailures() {
    let failed = state.withLock { state in
      defer { state.failed = [] }
      return state.failed
    }
    for queue in failed { queue.fail() }
  }

  private func descriptorFailed(_ number: Int) {
    let ring = state.withLock { errors[number].descriptor.take() ? $0.rings[number] : nil }
    ring?.queue.fail()
  }

  /// Takes memory from the kernel at once, and reports the failure soon. Called by the unit, too.
  private func cut() {
    change { $0.isCut = true }
    reportFailure(of: [0, 1])
  }
}
