import Devices
import Hardware
import Linux
import PCI
import Synchronization
import VhostUser

/// `-netdev vhost-user`: a process that serves the queues of the device, and moves its packets. The link is up while the
/// process is connected. Without it the queues wait, and continue with the next one.
///
/// Lock order: the transport's lock and those of the device may be held in calls of the device; then `state`; then the
/// session's, which is a leaf. The session calls this object on its loop's thread without a lock, and only there, and in
/// `close`, is the device called.
final class VhostUserNetwork: NetdevBackend, VhostUserDatapath, VhostUserDevice {
  private struct State {
    /// The back end that is connected, or the last one.
    var backEnd: BackEnd?
    /// The cache of translations of the present device; nil if it uses guest physical addresses.
    var translation: VhostUserTranslation?
    var activePairs = 1
    /// Whether the device's link lets packets through.
    var isLinkUp = false
  }

  let link = NetdevLink(isConnected: false)
  private let id: Identifier
  private let chardev: Chardev
  private let pairs: Int
  private let host: NetdevHost
  var memory: GuestMemory { host.memory }
  let session: VhostUserSession
  private let state = Mutex(State())

  /// - Parameters:
  ///   - chardev: has handed over its host's end, which is `dialer`, on `loop`.
  ///   - regions: the guest's RAM.
  init(
    id: Identifier, chardev: Chardev, pairs: Int, regions: [MemoryRegion], dialer: any BackEndDialer, loop: EventLoop,
    host: NetdevHost
  ) {
    self.id = id
    self.chardev = chardev
    self.pairs = pairs
    self.host = host
    var profile = DeviceProfile(
      queueCount: 2 * pairs, queueSize: VirtQueue.sizeLimit, queueCountWithoutReport: 1)
    profile.queuesPerReport = 2
    profile.memory = regions
    profile.requiredFeatures = Self.alwaysRequired
    profile.resumesWithoutInflight = true
    profile.outlivesFirstFailure = true
    session = VhostUserSession(profile, dialer: dialer, on: loop)
    session.setDevice(self)
  }

  /// VIRTIO_F_VERSION_1, and VHOST_USER_F_PROTOCOL_FEATURES, without which a ring cannot be disabled.
  private static let alwaysRequired: UInt64 = VirtioFeatures.version1.rawValue | 1 << 30

  /// The features that the back end must know: those of the rings and of the packets in them.
  private static let passedOn = VirtioNet.ringFeatures.union(
    [.version1, .accessPlatform, .eventIndex, .indirectDescriptors])

  func connect() { session.connect() }

  var status: NetdevStatus { chardev.options.id.map { .vhostUser($0) } ?? .closed }

  func awaitStart(patience nanoseconds: UInt64) throws(NetdevOpenError) {
    _ = try mapError(try session.waitUntilConnected()) { (error: VhostUserError) -> NetdevOpenError in
      .vhostUser(.backEnd(error))
    }
  }

  func close() {
    session.end()
    chardev.takeBack()
    link.setConnected(false)
  }

  // MARK: The device is built

  func admit(
    _ options: VirtioOptions, usesTranslation: Bool
  ) throws(VhostUserProblem.Reason) -> VirtioOptions {
    let known = state.withLock { $0.backEnd }
    let backEnd: BackEnd
    if let known {
      backEnd = known
    } else {
      backEnd = try mapError(try session.waitUntilConnected()) { (error: VhostUserError) in
        VhostUserProblem.Reason.backEnd(error)
      }
    }
    if usesTranslation {
      guard VirtioFeatures(rawValue: backEnd.features).contains(.accessPlatform) else { throw .noTranslation }
      let missing = Self.translationFeatures.subtracting(backEnd.protocolFeatures)
      guard missing.isEmpty else { throw .backEnd(.lacksProtocolFeatures(missing)) }
    }
    let translation = usesTranslation ? VhostUserTranslation(session: session, memory: memory) : nil
    let former = state.withLock { state in
      if state.backEnd == nil { state.backEnd = backEnd }
      defer { state.translation = translation }
      return state.translation
    }
    former?.disconnect()
    // A new session begins: the back end loses what it holds for a former device.
    session.reset()
    return options.limited(to: backEnd)
  }

  /// An invalidation is complete only when the back end acknowledges it, and a miss needs a channel.
  private static let translationFeatures: ProtocolFeatures = [.replyAcknowledgement, .backEndRequests]

  func setOffered(_ features: VirtioFeatures) {
    let usesTranslation = state.withLock { $0.translation != nil }
    var required = features.intersection(Self.passedOn)
    if usesTranslation { required.insert(.accessPlatform) }
    session.require(
      only: Self.alwaysRequired | required.rawValue, usesTranslation ? Self.translationFeatures : [])
  }

  // MARK: Calls of the device

  var capabilities: NetworkCapabilities {
    let features = state.withLock { $0.backEnd?.features } ?? 0
    return NetworkCapabilities(
      sends: .all, receives: .all, pairs: pairs, serverFeatures: VirtioFeatures(rawValue: features))
  }

  var datapath: (any QueueDatapath)? { self }
  /// The back end knows the offloads from the features, and the device changes them only with these.
  func setOffloads(_ offloads: NetworkOffloads) {}
  func setActivePairs(_ count: Int) { change { $0.activePairs = count } }
  func deviceLinkChanged(isUp: Bool) { change { $0.isLinkUp = isUp } }
  func deviceReset() { session.reset() }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      for pair in 0..<pairs {
        let isEnabled = state.isLinkUp && pair < state.activePairs
        session.setEnabled(isEnabled, queue: 2 * pair)
        session.setEnabled(isEnabled, queue: 2 * pair + 1)
      }
    }
  }

  /// Never called: the back end serves each queue.
  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult { .dropped }
  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int { 0 }

  // MARK: QueueDatapath

  var translation: VhostUserTranslation? { state.withLock { $0.translation } }

  func start(_ queue: DatapathQueue) throws(DatapathRefusal) {
    let translation = translation
    translation?.start(queue)
    var features = queue.features.intersection(Self.passedOn)
    if translation == nil { features.remove(.accessPlatform) }
    // Without a back end the queue waits. After the end of the netdev it does so for good: the link is down.
    _ = session.start(queue: queue.index, ring(of: queue, translation), features: features.rawValue)
  }

  // MARK: VhostUserDevice

  func backEndConnected(_ backEnd: BackEnd) {
    let translation = state.withLock { state in
      state.backEnd = backEnd
      return state.translation
    }
    translation?.reconnect()
    chardev.setForeignPeer(true)
    if let name = chardev.options.id { host.notify(.vhostUserConnected(id, chardev: name)) }
    link.setConnected(true)
  }

  func backEndLost(_ error: VhostUserError, isFinal: Bool) {
    state.withLock { $0.translation }?.disconnect()
    guard link.isConnected else { return }
    chardev.setForeignPeer(false)
    link.setConnected(false)
    host.notify(.vhostUserDisconnected(id))
  }

  func configurationChanged(_ bytes: [UInt8]) {}

  func translationMissed(address: UInt64, permissions: UInt8) {
    state.withLock { $0.translation }?.answerMiss(address, permissions: permissions)
  }
}
