import Hardware

/// The common configuration structure of the PCI transport as a value: virtio 1.2, section 4.1.4.3, with the status
/// machine of 3.1.1 and the feature negotiation of 2.2. A write returns an effect, which the transport carries out.
struct CommonConfiguration: Sendable {
  /// struct virtio_pci_common_cfg, to the end of queue_reset.
  static let size = 0x3c
  /// VIRTIO_MSI_NO_VECTOR
  static let noVector: UInt16 = 0xffff

  /// The action for the transport after a write.
  enum Effect: Equatable, Sendable {
    case none
    case reset
    /// The driver set DRIVER_OK: start the enabled queues.
    case start
    case enableQueue(Int)
    case resetQueue(Int)
    case configurationVector(UInt16)
    case queueVector(queue: Int, UInt16)
  }

  struct Queue: Sendable {
    let maximumSize: UInt16
    var layout: VirtQueue.Layout
    var vector = CommonConfiguration.noVector
    var enabled = false
    /// Whether a reset of the queue, or of the device, waits for the datapath to stop.
    var isResetting = false

    init(maximumSize: UInt16) {
      self.maximumSize = maximumSize
      layout = .init(size: maximumSize, descriptorArea: 0, driverArea: 0, deviceArea: 0)
    }
  }

  let offered: VirtioFeatures
  let requirements: [VirtioFeatureRequirement]
  let vectorCount: Int
  private(set) var accepted: VirtioFeatures = []
  private(set) var status: VirtioStatus = []
  /// The status before the last reset.
  private var formerStatus: VirtioStatus = []
  var queues: [Queue]
  /// The configuration generation, which the driver compares before and after it reads the device configuration
  /// (2.5.2).
  private(set) var generation: UInt8 = 0
  private var deviceFeatureSelect: UInt32 = 0
  private var driverFeatureSelect: UInt32 = 0
  private var driverFeatures: UInt64 = 0
  private var configurationVector = noVector
  private var queueSelect: UInt16 = 0

  init(
    offered: VirtioFeatures, requirements: [VirtioFeatureRequirement] = [], queueSizes: [UInt16], vectorCount: Int
  ) {
    self.offered = offered
    self.requirements = requirements
    self.vectorCount = vectorCount
    queues = queueSizes.map(Queue.init(maximumSize:))
  }

  /// Whether the device may serve its queues.
  var isLive: Bool { status.contains(.driverOK) && !status.contains(.deviceNeedsReset) }

  private var selected: Int? { Int(queueSelect) < queues.count ? Int(queueSelect) : nil }

  mutating func configurationChanged() { generation &+= 1 }

  /// Sets DEVICE_NEEDS_RESET: 2.1.2.
  /// - Returns: whether to notify the driver, which requires DRIVER_OK.
  mutating func fail() -> Bool {
    guard !status.contains(.deviceNeedsReset) else { return false }
    status.insert(.deviceNeedsReset)
    return status.contains(.driverOK)
  }

  mutating func reset() {
    // The generation continues, so that a driver that compares it across a reset sees a change.
    let (generation, former, resetting) = (generation, shownStatus, queues.map(\.isResetting))
    self = CommonConfiguration(
      offered: offered, requirements: requirements, queueSizes: queues.map(\.maximumSize), vectorCount: vectorCount)
    self.generation = generation
    formerStatus = former
    for index in queues.indices { queues[index].isResetting = resetting[index] }
  }

  /// The status that the driver reads: zero after a reset only when the reset is complete (2.4).
  var shownStatus: VirtioStatus {
    status.isEmpty && queues.contains { $0.isResetting } ? formerStatus : status
  }
}

// MARK: Registers

extension CommonConfiguration {
  /// The offsets of the fields.
  private enum Field {
    static let deviceFeatureSelect = 0x00
    static let deviceFeature = 0x04
    static let driverFeatureSelect = 0x08
    static let driverFeature = 0x0c
    static let configurationVector = 0x10
    static let queueCount = 0x12
    static let deviceStatus = 0x14
    static let configurationGeneration = 0x15
    static let queueSelect = 0x16
    static let queueSize = 0x18
    static let queueVector = 0x1a
    static let queueEnable = 0x1c
    static let queueNotifyOffset = 0x1e
    static let queueDescriptor = 0x20
    static let queueDriver = 0x28
    static let queueDevice = 0x30
    static let queueReset = 0x3a
  }

  /// Reads with any width and alignment. Bytes past the structure are zero.
  func read(offset: Int, width: AccessWidth) -> UInt64 {
    var value: UInt64 = 0
    var done = 0
    while done < width.rawValue {
      let (field, size) = Self.field(containing: offset + done)
      let skipped = offset + done - field
      let taken = min(size - skipped, width.rawValue - done)
      let part = (self.value(of: field) >> (8 * UInt64(skipped))) & .lowBits(8 * taken)
      value |= part << (8 * UInt64(done))
      done += taken
    }
    return value
  }

  /// Returns the start and the size of the field that contains an offset. Each 64-bit address counts as two fields,
  /// since a driver may access its halves.
  private static func field(containing offset: Int) -> (start: Int, size: Int) {
    switch offset {
    case 0x00..<0x10, 0x20..<0x38: (offset & ~3, 4)
    case 0x14, 0x15: (offset, 1)
    case 0x10..<0x20, 0x38..<0x3c: (offset & ~1, 2)
    default: (offset, 1)
    }
  }

  private func value(of field: Int) -> UInt64 {
    switch field {
    case Field.deviceFeatureSelect: return UInt64(deviceFeatureSelect)
    case Field.deviceFeature: return Self.half(of: offered.rawValue, deviceFeatureSelect)
    case Field.driverFeatureSelect: return UInt64(driverFeatureSelect)
    case Field.driverFeature: return Self.half(of: driverFeatures, driverFeatureSelect)
    case Field.configurationVector: return UInt64(configurationVector)
    case Field.queueCount: return UInt64(queues.count)
    case Field.deviceStatus: return UInt64(shownStatus.rawValue)
    case Field.configurationGeneration: return UInt64(generation)
    case Field.queueSelect: return UInt64(queueSelect)
    default: break
    }
    // The size of a queue that does not exist is zero.
    guard let selected else { return field == Field.queueVector ? UInt64(Self.noVector) : 0 }
    let queue = queues[selected]
    switch field {
    case Field.queueSize: return UInt64(queue.layout.size)
    case Field.queueVector: return UInt64(queue.vector)
    case Field.queueEnable: return queue.enabled ? 1 : 0
    case Field.queueNotifyOffset: return UInt64(selected)
    case Field.queueReset: return queue.isResetting ? 1 : 0
    default: return Self.area(of: field).map { queue.layout[keyPath: $0.area][bits: $0.half] } ?? 0
    }
  }

  /// Returns the area whose address a field contains, and the half of the address that is in the field.
  private static func area(
    of field: Int
  ) -> (area: WritableKeyPath<VirtQueue.Layout, UInt64>, half: ClosedRange<Int>)? {
    let half = field & 4 == 0 ? 0...31 : 32...63
    return switch field & ~4 {
    case Field.queueDescriptor: (\.descriptorArea, half)
    case Field.queueDriver: (\.driverArea, half)
    case Field.queueDevice: (\.deviceArea, half)
    default: nil
    }
  }

  private static func half(of features: UInt64, _ select: UInt32) -> UInt64 {
    switch select {
    case 0: features & 0xffff_ffff
    case 1: features >> 32
    default: 0
    }
  }

  /// Writes one field in its own width, as 4.1.3.1 requires of drivers, or a whole 64-bit address. Ignores other
  /// writes.
  mutating func write(offset: Int, width: AccessWidth, value: UInt64) -> Effect {
    if width == .quadword {
      switch offset {
      case Field.queueDescriptor, Field.queueDriver, Field.queueDevice:
        _ = write(field: offset, value & 0xffff_ffff)
        return write(field: offset + 4, value >> 32)
      default: return .none
      }
    }
    guard offset >= 0, offset < Self.size, Self.field(containing: offset) == (offset, width.rawValue) else {
      return .none
    }
    return write(field: offset, value)
  }

  private mutating func write(field: Int, _ value: UInt64) -> Effect {
    let low = UInt32(truncatingIfNeeded: value)
    let short = UInt16(truncatingIfNeeded: value)
    switch field {
    case Field.deviceFeatureSelect: deviceFeatureSelect = low
    case Field.driverFeatureSelect: driverFeatureSelect = low
    case Field.driverFeature: acceptFeatures(low)
    case Field.configurationVector:
      configurationVector = valid(vector: short)
      return .configurationVector(configurationVector)
    case Field.deviceStatus: return writeStatus(VirtioStatus(rawValue: UInt8(truncatingIfNeeded: value)))
    case Field.queueSelect: queueSelect = short
    default:
      guard let selected else { return .none }
      return write(queue: selected, field: field, low)
    }
    return .none
  }

  private mutating func write(queue index: Int, field: Int, _ value: UInt32) -> Effect {
    let short = UInt16(truncatingIfNeeded: value)
    switch field {
    case Field.queueVector:
      queues[index].vector = valid(vector: short)
      return .queueVector(queue: index, queues[index].vector)
    case Field.queueEnable:
      // A driver must not write zero (4.1.4.3.2).
      guard short == 1, !queues[index].enabled else { return .none }
      queues[index].enabled = true
      return .enableQueue(index)
    case Field.queueReset:
      guard short == 1, accepted.contains(.ringReset), queues[index].enabled else { return .none }
      let former = queues[index]
      queues[index] = Queue(maximumSize: former.maximumSize)
      queues[index].vector = former.vector
      queues[index].isResetting = former.isResetting
      return .resetQueue(index)
    default:
      // The fields below are read-only while the queue is enabled.
      guard !queues[index].enabled else { return .none }
    }
    if field == Field.queueSize {
      if short.nonzeroBitCount == 1, short <= queues[index].maximumSize { queues[index].layout.size = short }
    } else if let (area, half) = Self.area(of: field) {
      queues[index].layout[keyPath: area][bits: half] = UInt64(value)
    }
    return .none
  }

  /// Returns the vector, or `noVector` if the function does not have it: 4.1.5.1.2.
  private func valid(vector: UInt16) -> UInt16 { Int(vector) < vectorCount ? vector : Self.noVector }

  // MARK: Negotiation

  private mutating func acceptFeatures(_ value: UInt32) {
    guard !status.contains(.featuresOK) else { return }
    switch driverFeatureSelect {
    case 0: driverFeatures[bits: 0...31] = UInt64(value)
    case 1: driverFeatures[bits: 32...63] = UInt64(value)
    default: break
    }
  }

  /// Writes the device status. Bits can only be set; a write of zero is a reset.
  private mutating func writeStatus(_ value: VirtioStatus) -> Effect {
    if value.isEmpty { return .reset }
    let wasLive = isLive
    var new = status.union(value.intersection(.writable))
    if new.contains(.featuresOK), !status.contains(.featuresOK) {
      if isAcceptable(VirtioFeatures(rawValue: driverFeatures)) {
        accepted = VirtioFeatures(rawValue: driverFeatures)
      } else {
        new.remove(.featuresOK)
      }
    }
    if !new.contains(.featuresOK) { new.remove(.driverOK) }
    status = new
    return isLive && !wasLive ? .start : .none
  }

  private func isAcceptable(_ features: VirtioFeatures) -> Bool {
    // A driver must accept VERSION_1 (6.1). A device behind an IOMMU needs ACCESS_PLATFORM (6.2).
    features.isSubset(of: offered) && features.contains(.version1)
      && (!offered.contains(.accessPlatform) || features.contains(.accessPlatform))
      && requirements.allSatisfy { $0.isMet(by: features) }
  }
}
