import Hardware
import Synchronization

/// A source of random bytes: the host's getrandom, or a file of the host. No call blocks.
public protocol EntropySource: AnyObject, Sendable {
  /// Takes bytes that the source has now. Only one thread at a time may call it.
  /// - Parameter count: the most bytes to take; `bytes` has room for them.
  /// - Returns: the number of bytes at the front of `bytes`. After 0, the source calls the handler of `onReady` as soon
  ///   as it has bytes.
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int

  /// Sets the handler that the source calls when it has bytes again.
  /// - Parameter handler: called on any thread.
  func onReady(_ handler: @escaping @Sendable () -> Void)
}

/// A random number generator: virtio 1.2, section 5.4. It fills the buffers of its single queue.
///
/// A request gets the bytes that the source has, at least one (5.4.6.2). If the source has none, the request stays in
/// the queue until it does. The device takes the bytes before it translates the request's buffers, so no DMA request is
/// in flight while it waits for the host.
public final class VirtioEntropy: VirtioDevice {
  /// The most bytes per request. 5.4.6.2 permits less than the driver requested; the driver can then make others.
  static let requestLimit: UInt64 = 64 << 10

  private let source: any EntropySource
  private let quota: EntropyQuota?
  private let owner = Mutex(WeakVirtioTransport())
  /// The buffer of the queue's worker, with the size of the longest request so far.
  private let bytes = Mutex<[UInt8]>([])

  /// - Parameter limit: nil for no limit.
  public init(source: any EntropySource, limit: EntropyLimit? = nil) {
    self.source = source
    quota = limit.map(EntropyQuota.init)
  }

  public var type: UInt16 { 4 }
  /// Unclassified, as in QEMU.
  public var classCode: UInt32 { 0x00ff00 }
  public var name: String { "virtio-rng" }
  public var features: VirtioFeatures { [] }
  /// One queue with the size of QEMU's.
  public var queueSizes: [UInt16] { [8] }
  public var configuration: [UInt8] { [] }

  public func connect(to transport: any VirtioTransport) {
    owner.withLock { $0 = WeakVirtioTransport(transport) }
    quota?.use { transport.timer($0) }
    source.onReady { [weak self] in self?.wake() }
  }

  private func wake() { owner.withLock { $0.transport }?.wake(queue: 0) }

  public func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    repeat {
      try queue.suppressNotifications()
      while true {
        let allowed = min(quota?.remaining ?? .max, Self.requestLimit)
        // The end of the period wakes the queue; a notification before that would have no effect.
        if allowed == 0 { return }
        guard try queue.next() else { break }
        let isServed = try queue.serveChain { queue throws(VirtQueueError) in try serve(&queue, limit: allowed) }
        guard isServed else {
          // `onReady` wakes the queue when the source has bytes.
          queue.putBack()
          return
        }
      }
    } while try queue.requestNotifications()
  }

  /// Serves the chain that `queue.next` took last.
  /// - Returns: false if the source has no bytes now.
  private func serve(_ queue: inout VirtQueue, limit: UInt64) throws(VirtQueueError) -> Bool {
    let head = queue.chain.head
    let wanted = Int(min(queue.chain.writable.remaining, limit))
    let written = try bytes.withLock { bytes throws(VirtQueueError) in
      if bytes.count < wanted { bytes.append(contentsOf: repeatElement(0, count: wanted - bytes.count)) }
      let count = wanted > 0 ? source.take(wanted, into: &bytes) : 0
      guard count > 0 else { return 0 }
      // Before the write: a driver must not avoid the limit by a write that fails half way.
      quota?.take(UInt64(count)) { [weak self] in self?.wake() }
      do throws(DMAError) { return try queue.put(bytes, count: count) } catch { throw .memory(error) }
    }
    if written == 0, wanted > 0 { return false }
    try queue.complete(head: head, written: UInt32(truncatingIfNeeded: written))
    return true
  }
}
