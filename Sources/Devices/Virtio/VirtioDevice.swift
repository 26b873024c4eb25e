import Hardware

/// What a device type adds to a transport: virtio 1.2, section 5. The transport owns status, feature negotiation and
/// queues; the device says what it offers and serves its queues.
///
/// `process` is called on the queue's worker, for one queue at a time but for several queues at once; the rest on any
/// vCPU's thread.
public protocol VirtioDevice: AnyObject, Sendable {
  /// The device ID of section 5: 2 block, 3 console, 4 entropy.
  var type: UInt16 { get }
  /// Base class, sub-class and programming interface on PCI.
  var classCode: UInt32 { get }
  /// For the names of its workers.
  var name: String { get }
  /// What the device offers, ring and device bits; the transport adds its own.
  var features: VirtioFeatures { get }
  /// The largest size of each queue: powers of two, at most `VirtQueue.sizeLimit`.
  var queueSizes: [UInt16] { get }
  /// The device configuration (2.5) as the driver reads it now; always of one length.
  var configuration: [UInt8] { get }

  /// A driver's write into the device configuration, within its length.
  func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64)

  /// Given once, before anything else: a device that acts without being asked holds it weakly.
  func connect(to transport: any VirtioTransport)

  /// Serves what is available in a queue. It looks again after `VirtQueue.requestNotifications`, as `drain` does.
  func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError)

  /// The driver reset the device. No queue is being processed.
  func reset()
}

extension VirtioDevice {
  public func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64) {}
  public func connect(to transport: any VirtioTransport) {}
  public func reset() {}
}

/// What a device may ask of its transport at any time, from any thread that is not processing a queue.
public protocol VirtioTransport: AnyObject, Sendable {
  /// Has a queue processed soon, as if the driver had notified it: there is something to put into it.
  func wake(queue index: Int)
  /// The device configuration changed: raises the generation and tells the driver.
  func configurationChanged()
  /// A timer of the host as the device is to use it: it calls nothing once the device is unplugged.
  func timer(_ timer: any OneShotTimer) -> any OneShotTimer
}

/// How a device remembers the transport that owns it.
public struct WeakVirtioTransport: Sendable {
  public weak let transport: (any VirtioTransport)?

  public init(_ transport: (any VirtioTransport)? = nil) { self.transport = transport }
}

/// What every virtio device takes as options; QEMU's names in the comments.
public struct VirtioOptions: Hashable, Sendable {
  /// iommu_platform: DMA goes through the IOMMU, and the driver must agree to it (VIRTIO_F_ACCESS_PLATFORM).
  public var iommuPlatform = false
  /// event_idx
  public var eventIndex = true
  /// indirect_desc
  public var indirectDescriptors = true
  /// queue_reset
  public var queueReset = true
  /// vectors: MSI-X vectors, within `vectorRange`, 0 for none; nil for one a queue and one for configuration changes.
  public var vectors: Int?

  /// What MSI-X has room for.
  public static let vectorRange = 0...2048

  public init() {}

  /// The reserved feature bits (section 6) that the options stand for.
  var features: VirtioFeatures {
    var features: VirtioFeatures = [.version1]
    if iommuPlatform { features.insert(.accessPlatform) }
    if eventIndex { features.insert(.eventIndex) }
    if indirectDescriptors { features.insert(.indirectDescriptors) }
    if queueReset { features.insert(.ringReset) }
    return features
  }
}
