import Devices
import Hardware
import Synchronization
import TestSupport

/// A network that records what it is given, and delivers the test's packets.
final class RecordingNetwork: NetworkBackend {
  struct Packet: Equatable {
    var header = NetworkHeader()
    var frame: [UInt8]
    var pair = 0
  }

  private struct WeakFrontend: Sendable {
    weak let frontend: (any NetworkFrontend)?
  }

  private struct State {
    var sent: [Packet] = []
    /// Packets with headers, by pair.
    var waiting: [[[UInt8]]]
    /// The number of packets that `send` still takes; nil for any number.
    var room: Int?
    var refuses = false
    var isLinkUp = true
    var offloads: [NetworkOffloads] = []
    var activePairs: [Int] = []
    var links: [Bool] = []
    var receiveCalls = 0
    var frontend = WeakFrontend(frontend: nil)
    var onSend: (@Sendable () -> Void)?
  }

  /// All that a tap with a virtio_net_hdr can do.
  static let everything = NetworkCapabilities(
    sends: NetworkOffloads(rawValue: 0x7f), receives: NetworkOffloads(rawValue: 0x7f), pairs: 1)

  let capabilities: NetworkCapabilities
  let datapath: (any QueueDatapath)?
  private let memory: HeapMemory
  private let state: Mutex<State>

  init(memory: HeapMemory, capabilities: NetworkCapabilities = everything, datapath: (any QueueDatapath)? = nil) {
    self.datapath = datapath
    self.memory = memory
    self.capabilities = capabilities
    state = Mutex(State(waiting: Array(repeating: [], count: max(capabilities.pairs, 1))))
  }

  // MARK: What the test does

  var sent: [Packet] { state.withLock { $0.sent } }
  var offloads: [NetworkOffloads] { state.withLock { $0.offloads } }
  var activePairs: [Int] { state.withLock { $0.activePairs } }
  /// The calls of `deviceLinkChanged`.
  var links: [Bool] { state.withLock { $0.links } }
  /// The number of packets that the device has not taken.
  var waiting: Int { state.withLock { $0.waiting.reduce(0) { $0 + $1.count } } }
  /// How often the device asked for a packet.
  var receiveCalls: Int { state.withLock { $0.receiveCalls } }

  /// - Parameter count: the number of packets that `send` still takes; nil for any number.
  func setRoom(_ count: Int?) { state.withLock { $0.room = count } }
  func refuse(_ refuses: Bool) { state.withLock { $0.refuses = refuses } }
  /// Runs in each `send`, before the packet is copied.
  func onSend(_ body: (@Sendable () -> Void)?) { state.withLock { $0.onSend = body } }

  func wakeSender(pair: Int = 0) { state.withLock { $0.frontend.frontend }?.roomAvailable(pair: pair) }
  func wakeReceiver(pair: Int = 0) { state.withLock { $0.frontend.frontend }?.packetsAvailable(pair: pair) }

  func setLink(up: Bool) {
    changeLink(up: up)
    reportLink()
  }

  /// Changes the link without a report.
  func changeLink(up: Bool) { state.withLock { $0.isLinkUp = up } }
  func reportLink() { state.withLock { $0.frontend.frontend }?.linkChanged() }

  /// Queues a packet without a wake-up.
  func queue(_ frame: [UInt8], _ header: NetworkHeader = NetworkHeader(), pair: Int = 0) {
    let bytes = header.bytes
    state.withLock { $0.waiting[pair].append((0..<12).map { bytes[$0] } + frame) }
  }

  /// Delivers a packet, as the network does.
  func deliver(_ frame: [UInt8], _ header: NetworkHeader = NetworkHeader(), pair: Int = 0) {
    queue(frame, header, pair: pair)
    wakeReceiver(pair: pair)
  }

  // MARK: NetworkBackend

  var isLinkUp: Bool { state.withLock { $0.isLinkUp } }

  func connect(to frontend: any NetworkFrontend) {
    state.withLock { $0.frontend = WeakFrontend(frontend: frontend) }
  }

  func deviceLinkChanged(isUp: Bool) { state.withLock { $0.links.append(isUp) } }

  func setOffloads(_ offloads: NetworkOffloads) { state.withLock { $0.offloads.append(offloads) } }
  func setActivePairs(_ count: Int) { state.withLock { $0.activePairs.append(count) } }

  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult {
    state.withLock { $0.onSend }?()
    return state.withLock { state in
      if state.refuses { return .dropped }
      if state.room == 0 { return .full }
      if let room = state.room { state.room = room - 1 }
      let frame = segments.flatMap { memory.copy($0.address, count: $0.count)! }
      state.sent.append(Packet(header: header, frame: frame, pair: pair))
      return .sent
    }
  }

  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int {
    let bytes = state.withLock { state -> [UInt8] in
      state.receiveCalls += 1
      return state.waiting[pair].isEmpty ? [] : state.waiting[pair].removeFirst()
    }
    for index in bytes.indices.prefix(packet.byteCount) {
      packet.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self)
    }
    return bytes.count
  }
}
