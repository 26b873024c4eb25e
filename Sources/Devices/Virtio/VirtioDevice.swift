import Hardware

/// A virtio device without its transport: virtio 1.2, section 5. The transport owns status, feature negotiation and
/// queues; the device declares its features and serves its queues.
///
/// `process` runs on the queue's worker: serially for each queue, concurrently for several queues. The other
/// requirements may be called on any vCPU's thread.
public protocol VirtioDevice: AnyObject, Sendable {
  /// The device ID of section 5: 1 network, 2 block, 4 entropy.
  var type: UInt16 { get }
  /// Base class, sub-class and programming interface on PCI.
  var classCode: UInt32 { get }
  /// The prefix of the workers' names.
  var name: String { get }
  /// The features that the device offers; the transport adds its own.
  var features: VirtioFeatures { get }
  /// The device type's features that require others. The transport refuses a driver that breaks one of them.
  var featureRequirements: [VirtioFeatureRequirement] { get }
  /// The largest size of each queue: powers of two, at most `VirtQueue.sizeLimit`.
  var queueSizes: [UInt16] { get }
  /// The current device configuration (2.5). Its length never changes.
  var configuration: [UInt8] { get }

  /// Performs a driver's write to the device configuration, within its length.
  func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64)

  /// Connects the device to its transport. Called once, before a queue is served. A device that needs the transport
  /// later must keep a weak reference.
  func connect(to transport: any VirtioTransport)

  /// Receives the negotiated features when the driver sets DRIVER_OK, before a queue is served. The transport calls
  /// this with its lock held: the device must neither call the transport nor block.
  func start(with features: VirtioFeatures)

  /// Returns the server of a queue outside this process; nil if `process` serves the queue. The transport asks whenever
  /// it starts the queue, after `start`, with its lock held.
  func datapath(forQueue index: Int) -> (any QueueDatapath)?

  /// Serves the available chains of a queue. Must begin with `VirtQueue.suppressNotifications`, and check for further
  /// chains after `VirtQueue.requestNotifications`, as `VirtQueue.drain` does.
  func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError)

  /// Resets the device, on the driver's request. No queue is being processed. The stop of a datapath may be pending.
  func reset()
}

extension VirtioDevice {
  public var featureRequirements: [VirtioFeatureRequirement] { [] }
  public func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64) {}
  public func connect(to transport: any VirtioTransport) {}
  public func start(with features: VirtioFeatures) {}
  public func datapath(forQueue index: Int) -> (any QueueDatapath)? { nil }
  public func reset() {}
}

/// The services of a transport for its device. The device uses them on any thread that is not processing a queue.
public protocol VirtioTransport: AnyObject, Sendable {
  /// Schedules the processing of a queue, as if the driver had notified it. A thread may call this while it processes
  /// another queue.
  func wake(queue index: Int)
  /// Increments the configuration's generation and interrupts the driver, after a change of the device configuration.
  func configurationChanged()
  /// Wraps a timer of the host for use by the device: its handler no longer runs once the device is unplugged.
  func timer(_ timer: any OneShotTimer) -> any OneShotTimer
}

/// A device's weak reference to the transport that owns it.
public struct WeakVirtioTransport: Sendable {
  public weak let transport: (any VirtioTransport)?

  public init(_ transport: (any VirtioTransport)? = nil) { self.transport = transport }
}

/// The options of every virtio device. Comments give QEMU's names.
public struct VirtioOptions: Hashable, Sendable {
  /// iommu_platform: DMA goes through the IOMMU, and the driver must agree to it (VIRTIO_F_ACCESS_PLATFORM).
  public var iommuPlatform = false
  /// event_idx
  public var eventIndex = true
  /// indirect_desc
  public var indirectDescriptors = true
  /// queue_reset
  public var queueReset = true
  /// vectors: the number of MSI-X vectors, within `vectorRange`; nil for one per queue and one for configuration
  /// changes.
  public var vectors: Int?

  /// The possible numbers of MSI-X vectors.
  public static let vectorRange = 0...2048

  public init() {}

  /// The reserved feature bits (section 6) that the options enable.
  var features: VirtioFeatures {
    var features: VirtioFeatures = [.version1]
    if iommuPlatform { features.insert(.accessPlatform) }
    if eventIndex { features.insert(.eventIndex) }
    if indirectDescriptors { features.insert(.indirectDescriptors) }
    if queueReset { features.insert(.ringReset) }
    return features
  }
}

/// Feature bits (virtio 1.2, section 2.2). These are the bits of the transport and the rings (section 6); each device
/// type adds its own in bits 0 to 23 and from 50 on.
public struct VirtioFeatures: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public init(bit: Int) { rawValue = 1 &<< UInt64(truncatingIfNeeded: bit) }

  /// VIRTIO_F_INDIRECT_DESC: a descriptor may refer to a table of descriptors.
  public static let indirectDescriptors = VirtioFeatures(bit: 28)
  /// VIRTIO_F_EVENT_IDX: notifications are suppressed by index, not by flag.
  public static let eventIndex = VirtioFeatures(bit: 29)
  /// VIRTIO_F_VERSION_1: the driver follows the standard, not the legacy interface.
  public static let version1 = VirtioFeatures(bit: 32)
  /// VIRTIO_F_ACCESS_PLATFORM: addresses in rings are those of the platform's IOMMU.
  public static let accessPlatform = VirtioFeatures(bit: 33)
  /// VIRTIO_F_RING_RESET: the driver can reset a single queue.
  public static let ringReset = VirtioFeatures(bit: 40)
}

/// A feature that requires at least one of several others: virtio 1.2, section 2.2.1.
public struct VirtioFeatureRequirement: Hashable, Sendable {
  public let feature: VirtioFeatures
  public let anyOf: VirtioFeatures

  public init(_ feature: VirtioFeatures, requiresAnyOf others: VirtioFeatures) {
    self.feature = feature
    anyOf = others
  }

  func isMet(by features: VirtioFeatures) -> Bool {
    !features.contains(feature) || !features.isDisjoint(with: anyOf)
  }
}

/// The device status field: virtio 1.2, section 2.1.
public struct VirtioStatus: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let acknowledge = VirtioStatus(rawValue: 1)
  public static let driver = VirtioStatus(rawValue: 2)
  public static let driverOK = VirtioStatus(rawValue: 4)
  public static let featuresOK = VirtioStatus(rawValue: 8)
  /// DEVICE_NEEDS_RESET: the device sets it after an error from which it cannot recover.
  public static let deviceNeedsReset = VirtioStatus(rawValue: 0x40)
  public static let failed = VirtioStatus(rawValue: 0x80)

  /// The bits that a driver may set.
  static let writable: VirtioStatus = [.acknowledge, .driver, .driverOK, .featuresOK, .failed]
}
