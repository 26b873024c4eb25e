import Hardware
import Synchronization

/// A split virtqueue on the side of the device: virtio 1.2, section 2.7. It accesses the driver's three areas only
/// through the function's DMA port, so an IOMMU translates the rings as well as the data.
///
/// No content of guest memory causes a trap or an endless loop: errors of the driver throw a `VirtQueueError`. In
/// steady state nothing is allocated, because the arrays of the last chain are reused.
public struct VirtQueue: Sendable {
  /// The most descriptors of a queue in this implementation. The standard's limit is 32768.
  public static let sizeLimit: UInt16 = 1024

  /// The parameters that the driver sets before it enables a queue.
  public struct Layout: Hashable, Sendable {
    /// The number of descriptors, a power of two.
    public var size: UInt16
    /// The addresses of the descriptor table, the available ring and the used ring.
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
  /// The negotiated features, including those of the device type.
  public let features: VirtioFeatures
  public let port: any DMAPort
  private let owner: any VirtQueueOwner

  /// The chain that `next` took last.
  public internal(set) var chain = DescriptorChain()
  /// The result of the last `takeSegments`.
  public internal(set) var segments: [PhysicalSegment] = []
  /// The result of the last `takeBytes`, at the front of the array; the rest has no meaning.
  public internal(set) var bytes: [UInt8] = []
  /// A copy of an indirect table.
  var indirectTable: [UInt8] = []

  /// The index of the next entry in the available ring, and the driver's index at the last read.
  private var nextAvailable: UInt16 = 0
  private var seenAvailable: UInt16 = 0
  /// The index of the next entry in the used ring, and its value up to which the driver has its interrupt, if it wants
  /// one.
  private var nextUsed: UInt16 = 0
  private var notifiedUsed: UInt16 = 0
  /// Chains that are completed, but not yet visible to the driver. Outside `complete` there are some only after Bus
  /// Master Enable was clear.
  private var completed: [UsedChain] = []

  /// - Parameter layout: its size must be a power of two.
  public init(layout: Layout, features: VirtioFeatures, port: any DMAPort, owner: any VirtQueueOwner) {
    precondition(layout.size.nonzeroBitCount == 1, "a split queue's size is a power of two")
    self.layout = layout
    self.features = features
    self.port = port
    self.owner = owner
  }

  /// Whether the queue runs. While it is being stopped, this is false, and requests in progress must end soon, without
  /// completion.
  public var isRunning: Bool { owner.isRunning }

  private var mask: UInt16 { layout.size &- 1 }

  // MARK: Available ring (2.7.6)

  /// Reads the next available chain into `chain`.
  /// - Returns: false if there is none, or if the queue is being stopped.
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

  /// Returns the chains that `next` took last to the available ring. The following `next` reads the first of them
  /// again.
  /// - Parameter count: the number of chains. None of them has been completed.
  public mutating func putBack(_ count: UInt16 = 1) { nextAvailable &-= count }

  /// Calls `body` for each available chain, including those that become available meanwhile, as `serveChain` does.
  /// Turns the driver's notifications off during the calls, and on again afterwards.
  public mutating func drain(
    _ body: (inout VirtQueue) throws(VirtQueueError) -> Void
  ) throws(VirtQueueError) {
    repeat {
      guard owner.isRunning else { return }
      try suppressNotifications()
      while try next() { try serveChain(body) }
    } while try requestNotifications()
  }

  /// Calls `body` for the chain that `next` took last. If Bus Master Enable is clear before `body` has completed the
  /// chain, the chain is put back: once the bit is set again, `body` is called for it once more. So what `body` does
  /// before `complete` must be harmless if it is repeated.
  public mutating func serveChain<Result>(
    _ body: (inout VirtQueue) throws(VirtQueueError) -> Result
  ) throws(VirtQueueError) -> Result {
    let before = completedIndex
    do {
      return try body(&self)
    } catch {
      if error == .memory(.disabled), completedIndex == before { putBack() }
      throw error
    }
  }

  /// Turns the driver's notifications off: the first step of each service of the queue. With the event index there is
  /// nothing to turn off: the driver notifies only for the index that the device requested.
  ///
  /// Before that, returns the completed chains that are not yet visible to the driver.
  public mutating func suppressNotifications() throws(VirtQueueError) {
    try publish()
    guard !features.contains(.eventIndex) else { return }
    // VIRTQ_USED_F_NO_NOTIFY
    try store16(1, layout.deviceArea, 0)
  }

  /// Requests a notification for the next chain that the driver makes available.
  /// - Returns: true if a chain became available before the driver could see this request.
  public mutating func requestNotifications() throws(VirtQueueError) -> Bool {
    guard owner.isRunning else { return false }
    if features.contains(.eventIndex) {
      // avail_event, after the used ring's entries
      try store16(nextAvailable, layout.deviceArea, 4 + 8 * UInt64(layout.size))
    } else {
      try store16(0, layout.deviceArea, 0)
    }
    // The request must be visible before the index is read again. Otherwise both sides may wait for each other.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return try refreshAvailable()
  }

  /// Reads the driver's index.
  /// - Returns: whether a chain is available.
  private mutating func refreshAvailable() throws(VirtQueueError) -> Bool {
    // An acquiring load: entries and descriptors are read after the index that covers them.
    let index = try load16(layout.driverArea, 2)
    guard index &- nextAvailable <= layout.size else { throw .availableIndex }
    seenAvailable = index
    return index != nextAvailable
  }

  // MARK: Used ring (2.7.8)

  /// A chain that the device has used.
  public struct UsedChain: Hashable, Sendable {
    /// `chain.head` of the chain.
    public var head: UInt16
    /// The number of bytes written to its device-writable buffers, without a gap from the first byte on (2.7.8.2).
    public var written: UInt32

    public init(head: UInt16, written: UInt32) {
      self.head = head
      self.written = written
    }
  }

  /// Returns a chain to the driver, and interrupts the driver unless it suppresses the interrupt.
  ///
  /// If Bus Master Enable is clear, this throws, and the next service of the queue returns the chain. So the chain is
  /// completed in either case and must not be put back.
  /// - Parameters: as the fields of `UsedChain`.
  public mutating func complete(head: UInt16, written: UInt32) throws(VirtQueueError) {
    completed.append(UsedChain(head: head, written: written))
    try publish()
  }

  /// Returns several chains to the driver with one interrupt at most. The driver sees all of them or none. The rest is
  /// as for one chain.
  /// - Parameter chains: at least one, and at most as many as the queue has descriptors.
  public mutating func complete(_ chains: [UsedChain]) throws(VirtQueueError) {
    completed.append(contentsOf: chains)
    try publish()
  }

  /// The index of the next entry in the used ring, with all completed chains counted.
  private var completedIndex: UInt16 { nextUsed &+ UInt16(truncatingIfNeeded: completed.count) }

  /// Makes completed chains visible to the driver, and interrupts the driver unless it suppresses the interrupt. After
  /// an error, the next call continues where this one ended.
  private mutating func publish() throws(VirtQueueError) {
    if !completed.isEmpty {
      for position in completed.indices {
        try storeUsed(completed[position], at: nextUsed &+ UInt16(truncatingIfNeeded: position))
      }
      // A releasing store: the entries and the data are visible before the index that covers them.
      try store16(completedIndex, layout.deviceArea, 2)
      nextUsed = completedIndex
      completed.removeAll(keepingCapacity: true)
    }
    guard notifiedUsed != nextUsed else { return }
    if try driverWantsInterrupt() { owner.signalUsed() }
    notifiedUsed = nextUsed
  }

  private func storeUsed(_ chain: UsedChain, at index: UInt16) throws(VirtQueueError) {
    let entry = 4 + 8 * UInt64(index & mask)
    try store32(UInt32(chain.head), layout.deviceArea, entry)
    try store32(chain.written, layout.deviceArea, entry + 4)
  }

  /// Returns whether the driver wants an interrupt for the entries from `notifiedUsed` to `nextUsed`.
  private func driverWantsInterrupt() throws(VirtQueueError) -> Bool {
    // The index must be visible before the driver's suppression is read. The driver uses the reverse order.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if features.contains(.eventIndex) {
      // used_event, after the available ring's entries; 2.7.7.2
      let event = try load16(layout.driverArea, 4 + 2 * UInt64(layout.size))
      return nextUsed &- event &- 1 < nextUsed &- notifiedUsed
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT
    return try load16(layout.driverArea, 0) & 1 == 0
  }

  // MARK: Ring accesses at an offset in one of the driver's areas

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

  /// Returns the address of an offset in an area. Throws if it wraps past the top of the address space.
  static func address(_ area: UInt64, _ offset: UInt64) throws(VirtQueueError) -> UInt64 {
    let (address, overflow) = area.addingReportingOverflow(offset)
    guard !overflow else { throw .memory(.notMemory) }
    return address
  }
}

/// A queue's owner in the transport.
public protocol VirtQueueOwner: AnyObject, Sendable {
  /// False as soon as the driver stops the queue or resets the device, or the device fails. The queue then takes no
  /// more chains from the ring.
  var isRunning: Bool { get }
  /// Sends the queue's interrupt: a used buffer notification.
  func signalUsed()
}

/// The reason why a queue cannot continue. A driver that follows virtio 1.2, section 2.7, never causes one. The
/// transport sets DEVICE_NEEDS_RESET for all but `.memory(.disabled)`.
public enum VirtQueueError: Error, Hashable, Sendable {
  /// An access to a ring or a descriptor table failed.
  case memory(DMAError)
  /// The available index is ahead by more than the ring's size.
  case availableIndex
  /// A head or a next field refers to a descriptor past the end of its table.
  case descriptorIndex
  /// The chain has more descriptors than the queue: a loop, or an invalid chain.
  case chainLength
  /// A device-readable buffer follows a device-writable one.
  case bufferOrder
  /// The total size of a chain's buffers is 4 GiB or more.
  case totalLength
  /// An indirect table was not negotiated, is empty, nested, combined with NEXT, or not a multiple of 16 bytes.
  case indirectTable
  /// The chain is valid, but is not a request of this device type.
  case request
}
