/// What a kind of device needs from its back end.
public struct DeviceProfile: Sendable {
  /// The number of virtqueues that the device has.
  public var queueCount: Int
  /// The largest size of a queue.
  public var queueSize: UInt16
  /// The number of queues of a back end that cannot report it (without the protocol feature MQ).
  public var queueCountWithoutReport: Int
  /// The number of virtqueues in each unit of the back end's report: a network's back end reports pairs.
  public var queuesPerReport = 1
  /// The RAM that the back end may use: at most `MemoryRegion.limit` regions.
  public var memory: [MemoryRegion] = []
  /// The number of bytes of the device configuration that come from the back end.
  public var configurationSize = 0
  /// Virtio features that the back end must have. After the first connection, those that the device has offered.
  public var requiredFeatures: UInt64
  public var requiredProtocolFeatures: ProtocolFeatures = []
  /// Whether a queue waits for the next connection, if there is one, although no record of the requests in flight
  /// exists. A network loses packets then; a disk would lose writes.
  public var resumesWithoutInflight = false
  /// Whether a failure of the first connection is followed by another try.
  public var outlivesFirstFailure = false
  /// The longest time for an answer, in nanoseconds.
  public var patience: UInt64 = 5_000_000_000

  /// - Parameters:
  ///   - queueCount: at most 256.
  ///   - usesTranslation: whether the device's addresses go through an IOMMU.
  public init(queueCount: Int, queueSize: UInt16, queueCountWithoutReport: Int, usesTranslation: Bool = false) {
    self.queueCount = queueCount
    self.queueSize = queueSize
    self.queueCountWithoutReport = queueCountWithoutReport
    requiredFeatures = FeatureBits.version1
    if usesTranslation {
      requiredFeatures |= FeatureBits.accessPlatform
      // An invalidation is complete only when the back end acknowledges it, and a miss needs a channel.
      requiredProtocolFeatures = [.replyAcknowledgement, .backEndRequests]
    }
  }

  /// The protocol features that this front end understands.
  static let understood: ProtocolFeatures = [
    .multiqueue, .replyAcknowledgement, .backEndRequests, .configuration, .inflight, .resetDevice, .status,
  ]

  /// The number of queues, as the back end reports it.
  var neededReport: Int { (queueCount + queuesPerReport - 1) / queuesPerReport }
}

/// A back end after the handshake.
public struct BackEnd: Hashable, Sendable {
  /// The virtio features that it offers.
  public var features: UInt64 = 0
  public var protocolFeatures: ProtocolFeatures = []
  public var queueCount = 0
  /// The device configuration; empty without the protocol feature CONFIG.
  public var configuration: [UInt8] = []
}

/// A virtqueue that the driver has enabled: virtio 1.2, section 2.7.
public struct Ring: Sendable {
  public var size: UInt16
  /// Guest physical addresses, or IOVAs if the device uses translation.
  public var descriptorArea: UInt64
  public var driverArea: UInt64
  public var deviceArea: UInt64
  /// The next available index.
  public var startIndex: UInt16
  /// The eventfd that the driver's notifications signal.
  public var kick: SharedDescriptor
  /// The eventfd that the back end signals after it has used buffers; nil if no interrupt follows.
  public var call: SharedDescriptor?
  /// Reads the used ring's index from the guest's memory, for a queue that continues on a new connection. Called on the
  /// loop's thread without the session's lock. Nil if the memory cannot be read.
  public var usedIndex: @Sendable () -> UInt16?
  /// Reports that the queue has ended and that the device needs a reset. Called on the loop's thread without the
  /// session's lock.
  public var fail: @Sendable () -> Void

  public init(
    size: UInt16, descriptorArea: UInt64, driverArea: UInt64, deviceArea: UInt64, startIndex: UInt16,
    kick: SharedDescriptor, call: SharedDescriptor?, usedIndex: @escaping @Sendable () -> UInt16?,
    fail: @escaping @Sendable () -> Void
  ) {
    self.size = size
    self.descriptorArea = descriptorArea
    self.driverArea = driverArea
    self.deviceArea = deviceArea
    self.startIndex = startIndex
    self.kick = kick
    self.call = call
    self.usedIndex = usedIndex
    self.fail = fail
  }
}
