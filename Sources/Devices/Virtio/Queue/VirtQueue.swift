import Hardware
import Synchronization

/// A split virtqueue as the device sees it: virtio 1.2, section 2.7. The driver's three areas are reached through
/// the function's memory port alone, so an IOMMU applies to rings as it does to data.
///
/// Nothing that a driver puts into memory traps here or loops without bound: it ends in a `VirtQueueError`. In steady
/// state nothing is allocated; the arrays of the last chain are used again.
public struct VirtQueue: Sendable {
  /// The most descriptors a queue may have here. The standard's own limit is 32768.
  public static let sizeLimit: UInt16 = 1024

  /// What the driver says about a queue before it enables it.
  public struct Layout: Hashable, Sendable {
    /// Number of descriptors: a power of two.
    public var size: UInt16
    /// Addresses of the descriptor table, the available ring and the used ring.
    public var descriptorArea: UInt64
    public var driverArea: UInt64
    public var deviceArea: UInt64

    public init(size: UInt16, descriptorArea: UInt64, driverArea: UInt64, deviceArea: UInt64) {
      self.size = size
      self.descriptorArea = descriptorArea
      self.driverArea = driverArea
      self.deviceArea = deviceArea
    }
  }

  public let layout: Layout
  /// What was negotiated, the device type's features included.
  public let features: VirtioFeatures
  public let port: any DMAPort
  private let owner: any VirtQueueOwner

  /// The chain that `next` took last.
  public internal(set) var chain = DescriptorChain()
  /// What `takeSegments` found last.
  public internal(set) var segments: [PhysicalSegment] = []
  /// What `takeBytes` read last, at the front; what lies behind is of no meaning.
  public internal(set) var bytes: [UInt8] = []
  /// The bytes of an indirect table.
  var indirectTable: [UInt8] = []

  /// Index in the available ring of what is next, and how far the driver was seen to have filled it.
  private var nextAvailable: UInt16 = 0
  private var seenAvailable: UInt16 = 0
  /// Index in the used ring of the next entry, and what it was at the last look at the driver's wish to be told.
  private var nextUsed: UInt16 = 0
  private var toldUsed: UInt16 = 0

  /// - Parameter layout: its size must be a power of two.
  public init(layout: Layout, features: VirtioFeatures, port: any DMAPort, owner: any VirtQueueOwner) {
    precondition(layout.size.nonzeroBitCount == 1, "a split queue's size is a power of two")
    self.layout = layout
    self.features = features
    self.port = port
    self.owner = owner
  }

  /// False from the moment the queue is being stopped: what is in progress must end soon, uncompleted.
  public var isRunning: Bool { owner.isRunning }

  private var mask: UInt16 { layout.size &- 1 }

  // MARK: Available ring (2.7.6)

  /// Takes the next chain that the driver made available into `chain`.
  /// - Returns: false where there is none, or the queue is being stopped.
  public mutating func next() throws(VirtQueueError) -> Bool {
    guard owner.isRunning else { return false }
    if nextAvailable == seenAvailable {
      guard try refreshAvailable() else { return false }
    }
    let slot = UInt64(nextAvailable & mask)
    let head = try load16(layout.driverArea, 4 + 2 * slot)
    try walk(from: head)
    nextAvailable &+= 1
    return true
  }

  /// Puts the chain that `next` took last back into the available ring. The following `next` reads it again.
  public mutating func putBack() { nextAvailable &-= 1 }

  /// Serves what is available with `body`, chain by chain, and what becomes available meanwhile, with the driver's
  /// notifications off; afterwards the driver notifies again.
  public mutating func drain(
    _ body: (inout VirtQueue) throws(VirtQueueError) -> Void
  ) throws(VirtQueueError) {
    repeat {
      guard owner.isRunning else { return }
      try suppressNotifications()
      while try next() { try body(&self) }
    } while try requestNotifications()
  }

  /// Asks the driver to be silent about what it makes available. With the event index the driver is silent anyway
  /// until the index that was asked for.
  public func suppressNotifications() throws(VirtQueueError) {
    guard !features.contains(.eventIndex) else { return }
    // VIRTQ_USED_F_NO_NOTIFY
    try store16(1, layout.deviceArea, 0)
  }

  /// Asks the driver to notify of the next chain that it makes available.
  /// - Returns: true where one was made available before the driver could see the wish.
  public mutating func requestNotifications() throws(VirtQueueError) -> Bool {
    guard owner.isRunning else { return false }
    if features.contains(.eventIndex) {
      // avail_event, after the used ring's entries
      try store16(nextAvailable, layout.deviceArea, 4 + 8 * UInt64(layout.size))
    } else {
      try store16(0, layout.deviceArea, 0)
    }
    // The wish must be visible before the index is read again, else both sides may wait for each other.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return try refreshAvailable()
  }

  /// - Returns: whether a chain is available.
  private mutating func refreshAvailable() throws(VirtQueueError) -> Bool {
    // The load acquires: entries and descriptors are read after the index that covers them.
    let index = try load16(layout.driverArea, 2)
    guard index &- nextAvailable <= layout.size else { throw .availableIndex }
    seenAvailable = index
    return index != nextAvailable
  }

  // MARK: Used ring (2.7.8)

  /// Gives a chain back to the driver and interrupts it if it wants that.
  /// - Parameters:
  ///   - head: the chain's, as `chain` had it.
  ///   - written: bytes written into its device-writable buffers, an unbroken run from the first one on: 2.7.8.2.
  public mutating func complete(head: UInt16, written: UInt32) throws(VirtQueueError) {
    try addUsed(head: head, written: written)
    if try driverWantsInterrupt() { owner.signalUsed() }
  }

  private mutating func addUsed(head: UInt16, written: UInt32) throws(VirtQueueError) {
    let entry = 4 + 8 * UInt64(nextUsed & mask)
    try store32(UInt32(head), layout.deviceArea, entry)
    try store32(written, layout.deviceArea, entry + 4)
    // The store releases: the entry, and the data before it, are visible before the index that covers them.
    try store16(nextUsed &+ 1, layout.deviceArea, 2)
    nextUsed &+= 1
  }

  private mutating func driverWantsInterrupt() throws(VirtQueueError) -> Bool {
    // The index must be visible before the driver's wish is read: the driver does the reverse.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if features.contains(.eventIndex) {
      // used_event, after the available ring's entries; 2.7.7.2
      let event = try load16(layout.driverArea, 4 + 2 * UInt64(layout.size))
      let told = toldUsed
      toldUsed = nextUsed
      return nextUsed &- event &- 1 < nextUsed &- told
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT
    return try load16(layout.driverArea, 0) & 1 == 0
  }

  // MARK: Ring accesses, at an offset in one of the driver's areas

  private func load16(_ area: UInt64, _ offset: UInt64) throws(VirtQueueError) -> UInt16 {
    let address = try Self.address(area, offset)
    do { return try port.loadUInt16(at: address) } catch { throw .memory(error) }
  }

  private func store16(_ value: UInt16, _ area: UInt64, _ offset: UInt64) throws(VirtQueueError) {
    let address = try Self.address(area, offset)
    do { try port.storeUInt16(value, at: address) } catch { throw .memory(error) }
  }

  private func store32(_ value: UInt32, _ area: UInt64, _ offset: UInt64) throws(VirtQueueError) {
    let address = try Self.address(area, offset)
    do { try port.storeUInt32(value, at: address) } catch { throw .memory(error) }
  }

  /// An area does not go on at address 0 after the top of the address space.
  static func address(_ area: UInt64, _ offset: UInt64) throws(VirtQueueError) -> UInt64 {
    let (address, overflow) = area.addingReportingOverflow(offset)
    guard !overflow else { throw .memory(.notMemory) }
    return address
  }
}

/// What a queue asks of its transport.
public protocol VirtQueueOwner: AnyObject, Sendable {
  /// False from the moment the driver stops the queue, resets the device, or the device failed: nothing more is
  /// taken from the ring.
  var isRunning: Bool { get }
  /// Sends the queue's interrupt: a used buffer notification.
  func signalUsed()
}
