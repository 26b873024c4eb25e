import Hardware

/// The receive queue of one pair: virtio 1.2, section 5.1.6.4. It takes each packet from the backend into a buffer,
/// checks it there, and copies it to the driver's buffers. So its size is known before buffers are chosen, the guest
/// cannot change what was checked, and no DMA request is in flight during a call of the host.
///
/// The device holds a lock around each packet. Changes of the settings wait for one packet at most.
struct NetworkReceiver: Sendable {
  /// The state of the device that the queue uses for each packet.
  struct Settings: Sendable {
    var filter: ReceiveFilter
    /// The offloads that the driver has enabled.
    var offloads: NetworkOffloads = []
    /// The MTU if the driver negotiated it; otherwise nil.
    var mtu: Int?
    var isActive = false
    var isLinkUp = true
  }

  enum Step {
    /// A packet was delivered or dropped.
    case done
    /// The backend has no packet and will wake the queue, or the driver must supply buffers and will notify.
    case waiting
  }

  private static let packetLimit = NetworkHeader.size + NetworkHeader.frameLimit

  private(set) var settings: Settings
  private(set) var counters = NetworkReceiveCounters()
  /// The packet with its header. Empty until the first packet is requested.
  private var packet: [UInt8] = []
  /// The size of a packet in `packet` that waits for buffers; 0 if none does.
  private var count = 0
  /// The chains that hold the packet.
  private var used: [VirtQueue.UsedChain] = []

  init(_ settings: Settings) { self.settings = settings }

  /// Changes the settings. A packet that waits for buffers is dropped unless it is still accepted.
  /// - Returns: whether a packet was dropped. The next one may fit the buffers, so the caller must wake the queue.
  mutating func apply(_ settings: Settings) -> Bool {
    self.settings = settings
    guard count > 0, !settings.isActive || !accept(count) else { return false }
    discard()
    return true
  }

  /// Drops the packet that waits for buffers.
  mutating func discard() { count = 0 }

  /// Takes one packet from the backend to the driver.
  mutating func receiveNext(
    _ queue: inout VirtQueue, from backend: any NetworkBackend, pair: Int
  ) throws(VirtQueueError) -> Step {
    guard settings.isActive, queue.isRunning else { return .waiting }
    if count == 0 {
      guard let size = take(from: backend, pair: pair) else { return .waiting }
      guard accept(size) else { return .done }
      count = size
    }
    return try deliver(&queue)
  }

  /// - Returns: the size of the next packet; nil if there is none.
  private mutating func take(from backend: any NetworkBackend, pair: Int) -> Int? {
    if packet.isEmpty { packet = [UInt8](repeating: 0, count: Self.packetLimit) }
    var span = packet.mutableSpan
    var bytes = MutableRawSpan(_elements: &span)
    let size = backend.receive(into: &bytes, pair: pair)
    return size > 0 ? size : nil
  }

  /// Checks the packet in `packet`, and completes its header.
  /// - Returns: false if the packet must be dropped. It has been counted.
  private mutating func accept(_ size: Int) -> Bool {
    guard settings.isLinkUp else {
      counters.linkDown &+= 1
      return false
    }
    guard (NetworkHeader.size + NetworkHeader.frameMinimum...Self.packetLimit).contains(size) else {
      counters.size &+= 1
      return false
    }
    var header = NetworkHeader(packet)
    guard header.prepareToReceive(offloads: settings.offloads) else {
      counters.offload &+= 1
      return false
    }
    let frame = NetworkHeader.size
    if let mtu = settings.mtu, header.segmentation == NetworkHeader.Segmentation.none {
      let isTagged = packet[frame + 12] == 0x81 && packet[frame + 13] == 0
      guard size - frame - NetworkHeader.frameMinimum - (isTagged ? 4 : 0) <= mtu else {
        counters.size &+= 1
        return false
      }
    }
    guard settings.filter.accepts(packet, frame: frame, count: size) else {
      counters.filtered &+= 1
      return false
    }
    header.store(into: &packet)
    return true
  }

  // MARK: Delivery

  /// Copies the packet to the next chains, and returns them to the driver together.
  private mutating func deliver(_ queue: inout VirtQueue) throws(VirtQueueError) -> Step {
    used.removeAll(keepingCapacity: true)
    let merges = queue.features.contains(.netMergeBuffers)
    /// The addresses of the two bytes of num_buffers, if the packet continues in further chains.
    var bufferCount: (low: UInt64, high: UInt64)?
    var offset = 0
    while offset < count {
      guard try nextChain(&queue) else { return .waiting }
      let room = queue.chain.writable.remaining
      // Each buffer holds a header at least (5.1.6.3.1).
      guard room >= UInt64(NetworkHeader.size) else { throw .request }
      let part = Int(min(room, UInt64(count - offset)))
      let isLast = offset + part == count
      guard isLast || merges && used.count + 1 < Int(queue.layout.size) else {
        queue.putBack(UInt16(truncatingIfNeeded: used.count + 1))
        counters.buffer &+= 1
        count = 0
        return .done
      }
      if offset == 0, !isLast, let low = queue.chain.writable.address(ofByte: 10),
        let high = queue.chain.writable.address(ofByte: 11)
      {
        bufferCount = (low, high)
      }
      do throws(DMAError) {
        _ = try queue.put(packet, offset..<offset + part)
        used.append(.init(head: queue.chain.head, written: UInt32(truncatingIfNeeded: part)))
        offset += part
        if isLast, let bufferCount { try storeCount(queue, at: bufferCount) }
      } catch {
        return try fail(error, &queue, offset < count ? 1 : 0)
      }
    }
    counters.packets &+= 1
    counters.bytes &+= UInt64(count - NetworkHeader.size)
    count = 0
    try queue.complete(used)
    return .done
  }

  /// Takes the next chain.
  /// - Returns: false if there is none. The packet then waits for further chains than those that it has, which are put
  ///   back; the driver will notify.
  private func nextChain(_ queue: inout VirtQueue) throws(VirtQueueError) -> Bool {
    do throws(VirtQueueError) {
      while true {
        if try queue.next() { return true }
        guard try queue.requestNotifications() else { break }
        try queue.suppressNotifications()
      }
    } catch {
      queue.putBack(UInt16(truncatingIfNeeded: used.count))
      throw error
    }
    queue.putBack(UInt16(truncatingIfNeeded: used.count))
    return false
  }

  /// Stores num_buffers of a packet in several chains.
  private func storeCount(_ queue: VirtQueue, at address: (low: UInt64, high: UInt64)) throws(DMAError) {
    let low: InlineArray<1, UInt8> = [UInt8(truncatingIfNeeded: used.count)]
    let high: InlineArray<1, UInt8> = [UInt8(truncatingIfNeeded: used.count >> 8)]
    try queue.port.write(RawSpan(_elements: low.span), to: address.low)
    try queue.port.write(RawSpan(_elements: high.span), to: address.high)
  }

  /// Handles a failed write to the driver's buffers: the packet is dropped, and the driver gets its chains back empty.
  /// - Parameter unused: the number of chains that `next` took and that are not in `used`.
  private mutating func fail(
    _ error: DMAError, _ queue: inout VirtQueue, _ unused: Int
  ) throws(VirtQueueError) -> Step {
    if error == .disabled {
      // The packet waits until the driver sets Bus Master Enable again.
      queue.putBack(UInt16(truncatingIfNeeded: used.count + unused))
      throw .memory(error)
    }
    if unused > 0 { used.append(.init(head: queue.chain.head, written: 0)) }
    for index in used.indices { used[index].written = 0 }
    counters.memory &+= 1
    count = 0
    try queue.complete(used)
    return .done
  }
}
