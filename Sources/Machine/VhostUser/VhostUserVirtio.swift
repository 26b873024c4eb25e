import Devices
import Hardware
import Linux
import Synchronization
import VhostUser

/// A virtio device whose queues a vhost-user back end serves. The transport hands each queue over when the driver starts
/// it, and takes it back; the session carries both out without waiting.
///
/// Lock order: the transport's lock may be held in the calls of the transport; the session's locks are leaves. The
/// session calls this object on its loop's thread without a lock, and only there is the transport called.
final class VhostUserVirtio: VirtioDevice, VhostUserDatapath, VhostUserDevice {
  /// What the device type fixes.
  struct Kind: Sendable {
    /// The device ID: virtio 1.2, section 5.
    var type: UInt16
    var classCode: UInt32
    var name: String
    var queueSizes: [UInt16]
    /// The feature bits of the device type that may be offered if the back end has them.
    var knownFeatures: VirtioFeatures
    /// Makes the device configuration from the back end's.
    var configuration: @Sendable ([UInt8]) -> [UInt8]
  }

  private let kind: Kind
  let session: VhostUserSession
  let memory: GuestMemory
  let translation: VhostUserTranslation?
  let features: VirtioFeatures
  private let state: Mutex<State>
  /// Reports whether a back end is connected.
  private let onConnection: @Sendable (Bool) -> Void

  private struct State {
    var configuration: [UInt8]
    var transport = WeakVirtioTransport()
  }

  init(
    _ kind: Kind, session: VhostUserSession, backEnd: BackEnd, memory: GuestMemory, usesTranslation: Bool,
    onConnection: @escaping @Sendable (Bool) -> Void
  ) {
    self.kind = kind
    self.session = session
    self.memory = memory
    self.onConnection = onConnection
    translation = usesTranslation ? VhostUserTranslation(session: session, memory: memory) : nil
    features = kind.knownFeatures.intersection(VirtioFeatures(rawValue: backEnd.features))
    state = Mutex(State(configuration: kind.configuration(backEnd.configuration)))
  }

  // MARK: VirtioDevice

  var type: UInt16 { kind.type }
  var classCode: UInt32 { kind.classCode }
  var name: String { kind.name }
  var queueSizes: [UInt16] { kind.queueSizes }
  var configuration: [UInt8] { state.withLock { $0.configuration } }

  func connect(to transport: any VirtioTransport) {
    state.withLock { $0.transport = WeakVirtioTransport(transport) }
  }

  func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64) {
    let bytes = (0..<width.rawValue).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    session.writeConfiguration(offset: UInt32(truncatingIfNeeded: offset), bytes)
  }

  func datapath(forQueue index: Int) -> (any QueueDatapath)? { self }

  /// Never called: each queue has a datapath.
  func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {}

  func reset() { session.reset() }

  // MARK: QueueDatapath

  func start(_ queue: DatapathQueue) throws(DatapathRefusal) {
    translation?.start(queue)
    var features = queue.features
    if translation == nil { features.remove(.accessPlatform) }
    let ring = ring(of: queue, translation)
    if !session.start(queue: queue.index, ring, features: features.rawValue) { throw .failed }
  }

  // MARK: VhostUserDevice

  func backEndConnected(_ backEnd: BackEnd) {
    translation?.reconnect()
    onConnection(true)
  }

  func backEndLost(_ error: VhostUserError, isFinal: Bool) {
    translation?.disconnect()
    onConnection(false)
  }

  func configurationChanged(_ bytes: [UInt8]) {
    let transport = state.withLock { state in
      state.configuration = kind.configuration(bytes)
      return state.transport.transport
    }
    transport?.configurationChanged()
  }

  func translationMissed(address: UInt64, permissions: UInt8) {
    translation?.answerMiss(address, permissions: permissions)
  }
}
