import Hardware
import Synchronization

/// A source of random bytes: the host's getrandom, or a file of the host. No call waits for the host.
public protocol EntropySource: AnyObject, Sendable {
  /// Takes the bytes that the source has now. One thread at a time may call it.
  /// - Parameter count: the most to take; `bytes` has room for as many.
  /// - Returns: how many bytes it put at the front of `bytes`. After 0, the source calls `onReady`'s handler as soon as
  ///   it has some.
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int

  /// - Parameter handler: called from any thread.
  func onReady(_ handler: @escaping @Sendable () -> Void)
}

/// A random number generator: virtio 1.2, section 5.4. One queue, whose buffers it fills.
///
/// A request gets what the source has, one byte at least (5.4.6.2); where it has none, the request stays in the queue
/// until the source has some. The device has the bytes before it translates the request's buffers, so no DMA request is
/// in flight while it waits for the host.
public final class VirtioEntropy: VirtioDevice {
  /// A request gets this many bytes at most; a driver asks again for more (5.4.6.2 allows less than was asked for).
  static let requestLimit: UInt64 = 64 << 10

  private let source: any EntropySource
  private let quota: EntropyQuota?
  private let owner = Mutex(WeakVirtioTransport())
  /// Used by the queue's worker; as long as the longest request so far.
  private let bytes = Mutex<[UInt8]>([])

  /// - Parameter limit: nil for as much as the guest asks for.
  public init(source: any EntropySource, limit: EntropyLimit? = nil) {
    self.source = source
    quota = limit.map(EntropyQuota.init)
  }

  public var type: UInt16 { 4 }
  /// Unclassified, as QEMU has it.
  public var classCode: UInt32 { 0x00ff00 }
  public var name: String { "virtio-rng" }
  public var features: VirtioFeatures { [] }
  /// As many as QEMU's has.
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
        // What waits is served when the period ends; until then a notification would change nothing.
        if allowed == 0 { return }
        guard try queue.next() else { break }
        guard try serve(&queue, limit: allowed) else {
          // `onReady` wakes the queue when the source has bytes.
          queue.putBack()
          return
        }
      }
    } while try queue.requestNotifications()
  }

  /// - Returns: false where the source has nothing now.
  private func serve(_ queue: inout VirtQueue, limit: UInt64) throws(VirtQueueError) -> Bool {
    let head = queue.chain.head
    let wanted = Int(min(queue.chain.writable.remaining, limit))
    let written = try bytes.withLock { bytes throws(VirtQueueError) in
      if bytes.count < wanted { bytes.append(contentsOf: repeatElement(0, count: wanted - bytes.count)) }
      let count = wanted > 0 ? source.take(wanted, into: &bytes) : 0
      do throws(DMAError) { return try queue.put(bytes, count: count) } catch { throw .memory(error) }
    }
    if written == 0, wanted > 0 { return false }
    quota?.take(UInt64(written)) { [weak self] in self?.wake() }
    try queue.complete(head: head, written: UInt32(truncatingIfNeeded: written))
    return true
  }
}
