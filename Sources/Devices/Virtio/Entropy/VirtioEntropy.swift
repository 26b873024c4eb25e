import Hardware
import Synchronization

/// Where random bytes come from: the host's getrandom.
public protocol EntropySource: AnyObject, Sendable {
  /// Fills guest physical runs, which are RAM; from any thread.
  /// - Throws: where there is no randomness; the guest then gets an empty answer.
  func fill(_ segments: [PhysicalSegment]) throws(EntropyError)
}

public struct EntropyError: Error, Hashable, Sendable {
  public init() {}
}

/// A random number generator: virtio 1.2, section 5.4. One queue, whose buffers it fills.
public final class VirtioEntropy: VirtioDevice {
  /// A request gets this many bytes at most; a driver asks again for more (5.4.6.2 allows less than was asked for).
  static let requestLimit: UInt64 = 64 << 10

  private let source: any EntropySource
  private let quota: EntropyQuota?
  private let owner = Mutex(WeakVirtioTransport())

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
  }

  public func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    repeat {
      try queue.suppressNotifications()
      while true {
        let allowed = min(quota?.remaining ?? .max, Self.requestLimit)
        // What waits is served when the period ends; until then a notification would change nothing.
        if allowed == 0 { return }
        guard try queue.next() else { break }
        try serve(&queue, limit: allowed)
      }
    } while try queue.requestNotifications()
  }

  private func serve(_ queue: inout VirtQueue, limit: UInt64) throws(VirtQueueError) {
    let head = queue.chain.head
    var written: UInt64 = 0
    let request = queue.port.request()
    do {
      written = try queue.takeSegments(for: .write, limit: limit, during: request)
    } catch { throw .memory(error) }
    if written > 0 {
      do { try source.fill(queue.segments) } catch { written = 0 }
    }
    request.end()
    quota?.take(written) { [weak self] in self?.owner.withLock { $0.transport }?.wake(queue: 0) }
    try queue.complete(head: head, written: UInt32(truncatingIfNeeded: written))
  }
}
