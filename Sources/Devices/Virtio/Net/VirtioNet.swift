import Hardware
import Synchronization

/// A network device: virtio 1.2, section 5.1. This file declares its features and configuration and connects it to its
/// backend; `NetworkReceiver` and `NetworkTransmitter` move the packets, `VirtioNet+Control` serves the control queue.
///
/// Queue 2n receives and queue 2n+1 sends for pair n; the last queue is the control queue (5.1.2).
///
/// Lock order: the transport's lock, then a queue's session (held while `process` runs), then `settings`, then a pair's
/// locks, then the backend's. A pair's lock is held for one packet at a time.
public final class VirtioNet: VirtioDevice, NetworkFrontend {
  /// The state that the driver, the monitor and the backend set.
  struct Settings: Sendable {
    /// The negotiated features; none before DRIVER_OK.
    var features: VirtioFeatures = []
    var filter: ReceiveFilter
    /// The offloads that received packets may have.
    var offloads: NetworkOffloads = []
    /// The number of pairs that carry packets.
    var activePairs = 1
    /// VIRTIO_NET_S_ANNOUNCE: the driver has not acknowledged the announcement yet.
    var announces = false
    /// Whether `setLink` lets the link be up.
    var isLinkEnabled = true
    /// Whether `setLink` and the backend let the link be up, as last reported to the driver.
    var isLinkUp = true
  }

  /// The two queues of a pair.
  private final class QueuePair: Sendable {
    let receiver: Mutex<NetworkReceiver>
    let transmitter: Mutex<NetworkTransmitter>

    init(_ receive: NetworkReceiver.Settings, _ transmit: NetworkTransmitter.Settings) {
      receiver = Mutex(NetworkReceiver(receive))
      transmitter = Mutex(NetworkTransmitter(transmit))
    }
  }

  public let parameters: VirtioNetParameters
  public let features: VirtioFeatures
  let backend: any NetworkBackend
  private let pairs: [QueuePair]
  private let settings: Mutex<Settings>
  private let owner = Mutex(WeakVirtioTransport())

  /// - Throws: the problem that `VirtioNetParameters.validate` finds, or the backend's number of queue pairs.
  public init(
    parameters: VirtioNetParameters, backend: any NetworkBackend
  ) throws(VirtioNetParameters.Problem) {
    try parameters.validate()
    let capabilities = backend.capabilities
    guard VirtioNetParameters.pairCounts.contains(capabilities.pairs) else { throw .queuePairs }
    self.parameters = parameters
    self.backend = backend
    features = Self.offered(parameters, capabilities)
    let settings = Settings(filter: ReceiveFilter(address: parameters.address), isLinkUp: backend.isLinkUp)
    self.settings = Mutex(settings)
    pairs = (0..<(features.contains(.netMultiqueue) ? capabilities.pairs : 1)).map { _ in
      QueuePair(.init(filter: settings.filter), .init())
    }
  }

  // MARK: VirtioDevice

  public var type: UInt16 { 1 }
  /// Network controller, Ethernet.
  public var classCode: UInt32 { 0x020000 }
  public var name: String { "virtio-net" }
  public var featureRequirements: [VirtioFeatureRequirement] { Self.requirements }

  public var queueSizes: [UInt16] {
    var sizes: [UInt16] = []
    for _ in pairs { sizes += [parameters.receiveQueueSize, parameters.transmitQueueSize] }
    // The size of QEMU's control queue.
    return features.contains(.netControlQueue) ? sizes + [64] : sizes
  }

  /// struct virtio_net_config, up to duplex: 5.1.4.
  public var configuration: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 0x11)
    let settings = settings.withLock { $0 }
    bytes.replaceSubrange(0..<6, with: settings.filter.address.bytes)
    // VIRTIO_NET_S_LINK_UP, VIRTIO_NET_S_ANNOUNCE
    bytes.store(UInt16((settings.isLinkUp ? 1 : 0) | (settings.announces ? 2 : 0)), at: 0x06)
    bytes.store(UInt16(pairs.count), at: 0x08)
    bytes.store(parameters.mtu ?? 0, at: 0x0a)
    bytes.store(parameters.speed ?? .max, at: 0x0c)
    bytes[0x10] = parameters.duplex?.code ?? 0xff
    return bytes
  }

  public func connect(to transport: any VirtioTransport) {
    owner.withLock { $0 = WeakVirtioTransport(transport) }
    backend.connect(to: self)
    backend.deviceLinkChanged(isUp: isLinkUp)
    reset()
  }

  public func start(with features: VirtioFeatures) {
    update { settings in
      settings.features = features
      settings.filter = ReceiveFilter(
        address: settings.filter.address, filtersVLANs: features.contains(.netControlVLAN))
      settings.offloads = NetworkOffloads(receivedWith: features)
      backend.setOffloads(settings.offloads)
    }
  }

  public func reset() {
    update { settings in
      settings = Settings(
        filter: ReceiveFilter(address: parameters.address), isLinkEnabled: settings.isLinkEnabled,
        isLinkUp: settings.isLinkEnabled && backend.isLinkUp)
      backend.setOffloads([])
      backend.setActivePairs(1)
    }
    backend.deviceReset()
    for pair in pairs { pair.receiver.withLock { $0.discard() } }
  }

  public func datapath(forQueue index: Int) -> (any QueueDatapath)? {
    let count = settings.withLock { $0.features.contains(.netMultiqueue) } ? pairs.count : 1
    return index < 2 * count ? backend.datapath : nil
  }

  public func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    let count = queue.features.contains(.netMultiqueue) ? pairs.count : 1
    if index < 2 * count {
      if index % 2 == 0 { try receive(index / 2, &queue) } else { try send(index / 2, &queue) }
    } else if index == 2 * count, queue.features.contains(.netControlQueue) {
      try serveControl(&queue)
    }
  }

  private func receive(_ index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    let pair = pairs[index]
    let backend = backend
    // While the driver has buffers, only the backend wakes the queue.
    try queue.suppressNotifications()
    var step: NetworkReceiver.Step
    repeat {
      step = try pair.receiver.withLock { receiver throws(VirtQueueError) in
        try receiver.receiveNext(&queue, from: backend, pair: index)
      }
    } while step == .done
  }

  private func send(_ index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    let pair = pairs[index]
    let backend = backend
    repeat {
      try queue.suppressNotifications()
      var step: NetworkTransmitter.Step
      repeat {
        step = try pair.transmitter.withLock { transmitter throws(VirtQueueError) in
          try transmitter.sendNext(&queue, to: backend, pair: index)
        }
        // `roomAvailable` wakes the queue.
        if step == .waiting { return }
      } while step == .done
    } while try queue.requestNotifications()
  }

  // MARK: Settings

  /// The outcome of a change of the settings.
  struct Outcome<Answer: Sendable>: Sendable {
    /// What the change returned.
    let answer: Answer
    /// Whether the link went up or down.
    var linkChanged = false
    /// Whether packets that waited for buffers were dropped: the receive queues must be woken.
    var dropsPackets = false
  }

  /// Changes the settings. On return all queues use the new ones.
  @discardableResult
  func update<Answer: Sendable>(_ change: (inout Settings) -> Answer) -> Outcome<Answer> {
    settings.withLock { settings in
      let wasLinkUp = settings.isLinkUp
      var outcome = Outcome(answer: change(&settings))
      let mtu = settings.features.contains(.netMTU) ? parameters.mtu.map(Int.init) : nil
      let sends = NetworkOffloads(sentWith: settings.features)
      for (index, pair) in pairs.enumerated() {
        let isActive = index < settings.activePairs
        let receive = NetworkReceiver.Settings(
          filter: settings.filter, offloads: settings.offloads, mtu: mtu, isActive: isActive,
          isLinkUp: settings.isLinkUp)
        if pair.receiver.withLock({ $0.apply(receive) }) { outcome.dropsPackets = true }
        let send = NetworkTransmitter.Settings(offloads: sends, isActive: isActive, isLinkUp: settings.isLinkUp)
        pair.transmitter.withLock { $0.settings = send }
      }
      outcome.linkChanged = settings.isLinkUp != wasLinkUp
      if outcome.linkChanged { backend.deviceLinkChanged(isUp: settings.isLinkUp) }
      return outcome
    }
  }

  /// Sets whether the link may be up (QEMU: set_link). While it is down, packets are dropped both ways.
  public func setLink(up: Bool) { updateLink { $0.isLinkEnabled = up } }

  public func linkChanged() { updateLink { _ in } }

  private func updateLink(_ change: (inout Settings) -> Void) {
    // Only here: a change that another update took over would never be reported to the driver.
    let outcome = update { settings in
      change(&settings)
      settings.isLinkUp = settings.isLinkEnabled && backend.isLinkUp
    }
    guard outcome.linkChanged else { return }
    owner.withLock { $0.transport }?.configurationChanged()
    // While the link is down, packets that waited for the backend are dropped.
    wakeQueues(0..<pairs.count)
  }

  /// Requests that the driver announces its addresses to the network, after the network has changed (5.1.6.5.4;
  /// QEMU: announce_self).
  /// - Returns: false if the driver did not negotiate that, or the link is down.
  public func announce() -> Bool {
    let accepted = update { settings in
      let canAnnounce = settings.features.isSuperset(of: [.netGuestAnnounce, .netStatus]) && settings.isLinkUp
      if canAnnounce { settings.announces = true }
      return canAnnounce
    }.answer
    if accepted { owner.withLock { $0.transport }?.configurationChanged() }
    return accepted
  }

  // MARK: Wake-ups

  public func packetsAvailable(pair: Int) { wake(queue: 2 * pair) }
  public func roomAvailable(pair: Int) { wake(queue: 2 * pair + 1) }

  /// Wakes both queues of each pair.
  func wakeQueues(_ pairs: Range<Int>) {
    for index in 2 * pairs.lowerBound..<2 * pairs.upperBound { wake(queue: index) }
  }

  private func wake(queue index: Int) { owner.withLock { $0.transport }?.wake(queue: index) }

  // MARK: Inspection

  /// The number of queue pairs that carry packets.
  public var activePairs: Int { settings.withLock { $0.activePairs } }
  public var pairCount: Int { pairs.count }
  public var isLinkUp: Bool { settings.withLock { $0.isLinkUp } }
  /// The device's address. The driver may change it.
  public var address: MACAddress { settings.withLock { $0.filter.address } }

  /// The packets of one pair since the device was created.
  /// - Parameter pair: less than `pairCount`.
  public func counters(pair: Int) -> (received: NetworkReceiveCounters, sent: NetworkTransmitCounters) {
    (pairs[pair].receiver.withLock { $0.counters }, pairs[pair].transmitter.withLock { $0.counters })
  }
}
