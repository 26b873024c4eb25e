import Hardware

/// A server of virtqueues outside the device model: the host's kernel (vhost) or another process (vhost-user). It
/// accesses the rings and buffers in guest memory itself. The transport hands a queue over when the driver starts it,
/// and takes it back before the driver may reuse the memory.
///
/// The transport makes the calls for one device one after another, with its lock held, on the thread of a vCPU, a reset
/// or an unplug. So an implementation must not block, and must not call the transport within a call. A host call that
/// waits only for work in progress in the kernel is short enough.
public protocol QueueDatapath: AnyObject, Sendable {
  /// Starts a queue. The driver has set DRIVER_OK, and `VirtioDevice.start` has returned. After Bus Master Enable was
  /// clear, the queue starts again at the index that `stop` returned.
  func start(_ queue: DatapathQueue) throws(DatapathRefusal)

  /// Stops a queue: afterwards the server accesses no guest memory for it.
  /// - Parameter completion: called once if the result is `pending`, with the index as in `stopped`. The call must come
  ///   within a limited time, even if the server never answers; on another thread, or after this function has returned;
  ///   and without a lock that the functions of this protocol take.
  func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> DatapathStop

  /// Replaces the notifier by which the server interrupts the driver.
  /// - Parameter call: nil if the driver wants no interrupt.
  func setCall(_ call: Notifier?, queue index: Int)
}

/// The outcome of `QueueDatapath.stop`.
public enum DatapathStop: Hashable, Sendable {
  /// The server has stopped before the available-ring entry with this index. nil if the index is unknown: the queue
  /// then cannot continue without a reset.
  case stopped(UInt16?)
  /// The server has not stopped yet. The queue does not start again before the completion. Until then the driver reads
  /// that its reset of the queue or the device is in progress (virtio 1.2, sections 2.4 and 2.6.1).
  case pending
}

/// The reason why a datapath does not serve a queue.
public enum DatapathRefusal: Error, Hashable, Sendable {
  /// The device's own `process` must serve the queue.
  case local
  /// The device cannot work. The transport sets DEVICE_NEEDS_RESET.
  case failed
}

/// A queue as the transport hands it over to a datapath.
public struct DatapathQueue: Sendable {
  /// The number of the queue.
  public let index: Int
  /// The negotiated features, including those of the device type.
  public let features: VirtioFeatures
  /// The size and the three areas. The addresses are guest physical unless `usesTranslation` is true.
  public let layout: VirtQueue.Layout
  /// Whether addresses in `layout` and in descriptors go through the IOMMU (iommu_platform).
  public let usesTranslation: Bool
  /// The index of the first available-ring entry to serve.
  public let startIndex: UInt16
  /// Signalled when the driver notifies the queue, and after the start. The server reads it.
  public let kick: Notifier
  /// The server signals it for each used buffer notification. nil if the driver wants no interrupt.
  public let call: Notifier?
  /// Connects the datapath's cache of translations, if `usesTranslation` is true.
  /// - Returns: nil if no IOMMU is between the function and memory, so that the addresses are guest physical.
  public let connect: @Sendable (any RemoteIOTLB) -> (any RemoteDMAPort)?
  /// Sets DEVICE_NEEDS_RESET, unless the driver has reset the device meanwhile. The server may call it on any thread,
  /// without a lock that the functions of `QueueDatapath` take.
  public let fail: @Sendable () -> Void

  public init(
    index: Int, features: VirtioFeatures, layout: VirtQueue.Layout, usesTranslation: Bool, startIndex: UInt16,
    kick: Notifier, call: Notifier?,
    connect: @escaping @Sendable (any RemoteIOTLB) -> (any RemoteDMAPort)? = { _ in nil },
    fail: @escaping @Sendable () -> Void
  ) {
    self.index = index
    self.features = features
    self.layout = layout
    self.usesTranslation = usesTranslation
    self.startIndex = startIndex
    self.kick = kick
    self.call = call
    self.connect = connect
    self.fail = fail
  }
}
