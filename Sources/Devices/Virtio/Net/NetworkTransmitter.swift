import Hardware

/// The transmit queue of one pair: virtio 1.2, section 5.1.6.2. A chain is a header of 12 bytes and a frame, in any
/// framing. The frame goes from the driver's buffers to the backend without a copy here.
///
/// The device holds a lock around each packet, as for `NetworkReceiver`.
struct NetworkTransmitter: Sendable {
  struct Settings: Sendable {
    /// The offloads that the driver negotiated.
    var offloads: NetworkOffloads = []
    var isActive = false
    var isLinkUp = true
  }

  enum Step {
    /// A packet was sent or dropped.
    case done
    /// The driver has no more packets.
    case empty
    /// The backend has no room, or the queue carries no packets.
    case waiting
  }

  /// The outcome for one packet. All but `full` end its chain.
  private enum Outcome {
    case sent(Int)
    case full
    case linkDown, header, size, memory, backend
  }

  var settings: Settings
  private(set) var counters = NetworkTransmitCounters()

  init(_ settings: Settings) { self.settings = settings }

  /// Sends one packet of the driver.
  mutating func sendNext(
    _ queue: inout VirtQueue, to backend: any NetworkBackend, pair: Int
  ) throws(VirtQueueError) -> Step {
    guard settings.isActive else { return .waiting }
    guard try queue.next() else { return .empty }
    let head = queue.chain.head
    guard queue.chain.readable.remaining >= UInt64(NetworkHeader.size) else { throw .request }
    let outcome: Outcome
    do throws(DMAError) { outcome = try send(&queue, to: backend, pair: pair) } catch {
      if error == .disabled {
        // The packet waits until the driver sets Bus Master Enable again.
        queue.putBack()
        throw .memory(error)
      }
      outcome = .memory
    }
    switch outcome {
    case .full:
      counters.waits &+= 1
      queue.putBack()
      return .waiting
    case .sent(let bytes):
      counters.packets &+= 1
      counters.bytes &+= UInt64(bytes)
    case .linkDown: counters.linkDown &+= 1
    case .header: counters.header &+= 1
    case .size: counters.size &+= 1
    case .memory: counters.memory &+= 1
    case .backend: counters.backend &+= 1
    }
    try queue.complete(head: head, written: 0)
    return .done
  }

  private func send(
    _ queue: inout VirtQueue, to backend: any NetworkBackend, pair: Int
  ) throws(DMAError) -> Outcome {
    guard settings.isLinkUp else { return .linkDown }
    _ = try queue.takeBytes(NetworkHeader.size)
    guard let frame = Int(exactly: queue.chain.readable.remaining),
      (NetworkHeader.frameMinimum...NetworkHeader.frameLimit).contains(frame)
    else { return .size }
    var header = NetworkHeader(queue.bytes)
    guard header.prepareToSend(frame: frame, offloads: settings.offloads) else { return .header }
    // Keep the request in flight until the backend has copied the frame: the guest may reuse its memory after that.
    let request = queue.port.request()
    let taken = try queue.takeSegments(for: .read, limit: UInt64(frame), during: request)
    guard taken == UInt64(frame), queue.segments.count <= NetworkHeader.segmentLimit else { return .size }
    let result = backend.send(header, queue.segments, pair: pair)
    request.end()
    switch result {
    case .sent: return .sent(frame)
    case .full: return .full
    case .dropped: return .backend
    }
  }
}
