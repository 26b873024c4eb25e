import Devices
import Hardware
import Synchronization
import TestSupport

/// A network that returns each sent packet to the device, and checks what the device gives it.
final class FuzzNetwork: NetworkBackend {
  private struct WeakFrontend: Sendable {
    weak let frontend: (any NetworkFrontend)?
  }

  private struct State {
    /// Packets with headers that the device has not taken, by pair.
    var waiting: [[[UInt8]]]
    var result = NetworkSendResult.sent
    var isLinkUp = true
    var activePairs = 1
    var sent = 0
    /// The features that the driver has negotiated; nil if the target does not know them.
    var features: VirtioFeatures?
    var finding: Finding?
    var frontend = WeakFrontend(frontend: nil)
  }

  /// The most packets that wait for each pair.
  private static let waitingLimit = 4

  let capabilities: NetworkCapabilities
  private let memory: HeapMemory
  private let watch: WatchedMemory?
  private let state: Mutex<State>

  /// - Parameter watch: knows the chain that the device reads.
  init(_ capabilities: NetworkCapabilities, memory: HeapMemory, watch: WatchedMemory? = nil) {
    self.capabilities = capabilities
    self.memory = memory
    self.watch = watch
    state = Mutex(State(waiting: Array(repeating: [], count: capabilities.pairs)))
  }

  // MARK: The target's side

  var finding: Finding? { state.withLock { $0.finding } }
  /// The number of packets that the network has taken.
  var sent: Int { state.withLock { $0.sent } }
  func setFeatures(_ features: VirtioFeatures?) { state.withLock { $0.features = features } }
  func setResult(_ result: NetworkSendResult) { state.withLock { $0.result = result } }

  func setLink(up: Bool) {
    state.withLock { $0.isLinkUp = up }
    frontend?.linkChanged()
  }

  /// Reports packets and room to the device, for each pair.
  func wakeDevice() {
    guard let frontend else { return }
    for pair in 0..<capabilities.pairs {
      frontend.packetsAvailable(pair: pair)
      frontend.roomAvailable(pair: pair)
    }
  }

  /// Queues a packet with its header for the device.
  func queue(_ packet: [UInt8], pair: Int) {
    state.withLock { if $0.waiting[pair].count < Self.waitingLimit { $0.waiting[pair].append(packet) } }
  }

  /// Drops all packets, and takes those that are sent from now on.
  func clear() {
    state.withLock { state in
      for pair in state.waiting.indices { state.waiting[pair] = [] }
      state.result = .sent
      state.sent = 0
    }
    setLink(up: true)
  }

  private var frontend: (any NetworkFrontend)? { state.withLock { $0.frontend.frontend } }

  // MARK: NetworkBackend

  var isLinkUp: Bool { state.withLock { $0.isLinkUp } }
  func connect(to frontend: any NetworkFrontend) {
    state.withLock { $0.frontend = WeakFrontend(frontend: frontend) }
  }

  func setOffloads(_ offloads: NetworkOffloads) {
    note(offloads.isSubset(of: capabilities.receives), "offloads \(offloads.rawValue) to receive")
  }

  func setActivePairs(_ count: Int) {
    note((1...capabilities.pairs).contains(count), "\(count) active pairs")
    state.withLock { $0.activePairs = count }
  }

  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult {
    check(header, segments, pair: pair)
    var packet = (0..<12).map { header.bytes[$0] }
    for segment in segments {
      guard let part = memory.copy(segment.address, count: segment.count) else { return .dropped }
      packet += part
    }
    let result = state.withLock { state in
      if state.result == .sent { state.sent += 1 }
      return state.result
    }
    if result == .sent { queue(packet, pair: pair) }
    return result
  }

  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int {
    note(packet.byteCount == NetworkHeader.size + NetworkHeader.frameLimit, "room for \(packet.byteCount) bytes")
    note(pair < state.withLock { $0.activePairs }, "pair \(pair) receives, but is not active")
    let bytes = state.withLock { $0.waiting[pair].isEmpty ? [] : $0.waiting[pair].removeFirst() }
    guard bytes.count <= packet.byteCount else { return 0 }
    for index in bytes.indices { packet.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self) }
    return bytes.count
  }

  // MARK: Checks

  private func note(_ condition: Bool, _ text: @autoclosure () -> String) {
    if condition { return }
    let finding = Finding(text: "the network is given \(text())")
    state.withLock { state in
      if state.finding == nil { state.finding = finding }
    }
  }

  private func check(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) {
    note(pair < state.withLock { $0.activePairs }, "a packet of pair \(pair), which is not active")
    note(segments.allSatisfy { $0.count > 0 && memory.contains($0.address, count: UInt64($0.count)) }, "no RAM")
    note(segments.count <= NetworkHeader.segmentLimit, "\(segments.count) segments")
    let size = segments.reduce(0) { $0 + $1.count }
    note((14...14 + 40 + 65535).contains(size), "a frame of \(size) bytes")
    if let watch {
      var joined: [PhysicalSegment] = []
      for segment in segments where !joined.join(segment) { joined.append(segment) }
      note(joined == watch.readable(from: 12), "other bytes than the chain has")
    }
    check(header, frame: size, by: Self.offloads(state.withLock { $0.features }, capabilities.sends))
  }

  /// The offloads that packets may request: virtio 1.2, section 5.1.3.
  private static func offloads(_ features: VirtioFeatures?, _ capabilities: NetworkOffloads) -> NetworkOffloads {
    guard let features else { return capabilities }
    var offloads: NetworkOffloads = []
    let bits: [(Int, NetworkOffloads)] = [
      (0, .checksum), (11, .tso4), (12, .tso6), (13, .ecn), (14, .ufo), (56, [.uso4, .uso6]),
    ]
    for (bit, offload) in bits where features.contains(VirtioFeatures(bit: bit)) { offloads.formUnion(offload) }
    return offloads.intersection(capabilities)
  }

  /// Checks what `NetworkBackend.send` promises of a header.
  private func check(_ header: NetworkHeader, frame: Int, by offloads: NetworkOffloads) {
    note(header.bufferCount == 0, "num_buffers \(header.bufferCount)")
    note(Int(header.headerLength) <= frame, "hdr_len \(header.headerLength)")
    note(header.flags.isSubset(of: .needsChecksum), "flags \(header.flags.rawValue)")
    let start = Int(header.checksumStart)
    let offset = Int(header.checksumOffset)
    if header.flags.contains(.needsChecksum) {
      note(offloads.contains(.checksum), "a checksum request")
      note(start + offset + 2 <= frame, "csum_start \(start) and csum_offset \(offset) in \(frame) bytes")
    } else {
      note(start == 0 && offset == 0, "a checksum without a flag")
    }
    if header.segmentation == 0 {
      note(header.segmentSize == 0, "gso_size without gso_type")
      return
    }
    note(header.flags.contains(.needsChecksum) && header.segmentSize > 0, "segmentation without checksum or size")
    let hasECN = header.segmentation & 0x80 != 0
    let isAllowed =
      switch header.segmentation & 0x7f {
      case 1: offloads.contains(.tso4) && (!hasECN || offloads.contains(.ecn))
      case 3: offloads.contains(.ufo) && !hasECN
      case 4: offloads.contains(.tso6) && (!hasECN || offloads.contains(.ecn))
      case 5: !offloads.isDisjoint(with: [.uso4, .uso6]) && !hasECN
      default: false
      }
    note(isAllowed, "gso_type \(header.segmentation)")
  }
}
