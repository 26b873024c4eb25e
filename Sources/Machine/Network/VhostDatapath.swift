import Devices
import Hardware
import Linux
import Vhost

/// A vhost device as `VhostDatapath` uses it; `VhostNet` is the kernel's.
protocol VhostDevice: AnyObject, Sendable {
  var knownFeatures: UInt64 { get }
  func setFeatures(_ features: UInt64) throws(SystemError)
  func start(_ ring: VhostNet.Ring) throws(SystemError)
  func connect(_ ring: UInt32, to tap: Int32?) throws(SystemError)
  func setCall(_ call: Int32?, of ring: UInt32) throws(SystemError)
  func stop(_ ring: UInt32) throws(SystemError) -> UInt16

  /// Readable while a miss waits.
  var descriptor: Int32 { get }
  func takeMiss() throws(SystemError) -> VhostNet.Miss?
  func add(_ mapping: VhostNet.Mapping) throws(SystemError)
  func invalidate(_ address: UInt64, size: UInt64) throws(SystemError)
  func forgetMisses() throws(SystemError)
}

extension VhostNet: VhostDevice {}

/// The kernel's vhost-net as the server of a network device's queues: a vhost device and a queue of the tap interface
/// for each pair of queues.
final class VhostDatapath: QueueDatapath {
  private let pairs: [VhostPair]

  /// - Parameters:
  ///   - devices: one for each pair, with the memory table of `memory`.
  ///   - taps: the descriptors of the interface's queues, one for each pair. They stay open until `close`.
  ///   - loop: answers misses, and reports rings that the driver has damaged.
  ///   - report: called when the kernel refuses a ring, which the device's own service then takes over. Must not wait.
  init(
    _ devices: [any VhostDevice], taps: [Int32], memory: GuestMemory, loop: EventLoop,
    report: @escaping @Sendable (SystemError) -> Void
  ) throws(SystemError) {
    var made: [VhostPair] = []
    for (device, tap) in zip(devices, taps) {
      made.append(try VhostPair(device, tap: tap, memory: memory, loop: loop, report: report))
    }
    pairs = made
  }

  func start(_ queue: DatapathQueue) throws(DatapathRefusal) {
    guard pairs.indices.contains(queue.index / 2) else { throw .local }
    try pairs[queue.index / 2].start(queue)
  }

  func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> DatapathStop {
    guard pairs.indices.contains(index / 2) else { return .stopped(nil) }
    return .stopped(pairs[index / 2].stop(index % 2))
  }

  func setCall(_ call: Notifier?, queue index: Int) {
    if pairs.indices.contains(index / 2) { pairs[index / 2].setCall(call, ring: index % 2) }
  }

  /// Sets whether the link lets packets through.
  func setLink(up: Bool) { for pair in pairs { pair.change { $0.isLinkUp = up } } }

  /// Holds packets back while the offloads of the tap change.
  func setHeld(_ isHeld: Bool) { for pair in pairs { pair.change { $0.isHeld = isHeld } } }

  /// Stops all packets for good, before the taps are closed.
  func close() { for pair in pairs { pair.close() } }
}
