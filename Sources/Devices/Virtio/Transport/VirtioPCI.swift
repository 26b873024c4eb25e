import Hardware
import PCI
import Synchronization

/// A virtio device as a PCI Express function: virtio 1.2, section 4.1, without the legacy interface. The function is an
/// endpoint with Function Level Reset. The structures are in BAR 4, MSI-X is in BAR 1.
///
/// Lock order: the common configuration's lock, then the queues', then the interrupts'. Workers are woken and failures
/// are reported with none of them held, because a worker may run at once. Datapaths are called with the common
/// configuration's lock held.
public final class VirtioPCI: FunctionModel, VirtioTransport {
  struct Registers {
    var common: CommonConfiguration
    /// Counts resets, so that a failure from before a reset does not affect the device after it.
    var session: UInt64 = 0
    var handovers: [QueueHandover]
    /// Whether the function is being revoked: no datapath starts any more.
    var hasEnded = false
    /// Whether the driver must be notified of a failure when the lock is released.
    var mustNotify = false
  }

  public let function: Function
  public let device: any VirtioDevice
  let port: any DMAPort
  let usesTranslation: Bool
  private let interrupts: VirtioInterrupts
  let slots: [VirtioQueueSlot]
  private let registers: Mutex<Registers>

  /// - Parameters:
  ///   - options: `vectors` must be within its range.
  ///   - address: device and function on the bus to which the caller adds `function`.
  public init(
    device: any VirtioDevice, options: VirtioOptions, environment: PCIEnvironment, address: RequesterID
  ) {
    let queueSizes = device.queueSizes
    let vectorCount = options.vectors ?? queueSizes.count + 1
    self.device = device
    function = Function(
      Self.describe(device, environment.endpointType, queueCount: queueSizes.count, vectorCount: vectorCount),
      at: address, environment: environment)
    usesTranslation = options.iommuPlatform
    port =
      options.iommuPlatform
      ? function.environment.makePort()
      : function.environment.makeDirectPort()
    let interrupts = VirtioInterrupts(function: function)
    self.interrupts = interrupts
    slots = queueSizes.indices.map { VirtioQueueSlot(index: $0, device: device, interrupts: interrupts) }
    registers = Mutex(
      Registers(
        common: CommonConfiguration(
          offered: device.features.union(options.features), requirements: device.featureRequirements,
          queueSizes: queueSizes, vectorCount: vectorCount),
        handovers: Array(repeating: .none, count: queueSizes.count)))
    for slot in slots {
      slot.setWorker(
        function.environment.makeWorker(name: "\(device.name) \(slot.index)") { [weak self, weak slot] in
          guard let failure = slot?.serve() else { return }
          self?.fail(session: failure.session)
        })
    }
    function.install(self)
    device.connect(to: self)
  }

  private static func describe(
    _ device: any VirtioDevice, _ type: ExpressType, queueCount: Int, vectorCount: Int
  ) -> FunctionDescription {
    precondition(queueCount * Int(VirtioCapabilities.notificationStride) <= 0x1000, "doorbells fit their page")
    var description = FunctionDescription(
      vendorID: 0x1af4, deviceID: 0x1040 + device.type, classCode: device.classCode)
    description.revisionID = 1
    description.subsystemVendorID = 0x1af4
    description.subsystemID = 0x1100
    description.interruptPin = 1
    description.expressType = type
    if vectorCount > 0 {
      let table = max(0x800, UInt64(vectorCount) * 16)
      let pending = (table + 0x7ff) & ~0x7ff
      let size = pending + UInt64((vectorCount + 63) / 64) * 8
      let rounded = max(0x1000, UInt64(1) << (UInt64.bitWidth - (size - 1).leadingZeroBitCount))
      description.msix = MSIX.Layout(vectorCount: vectorCount, bar: 1, pendingOffset: pending)
      description.baseAddressRegisters.append(.init(index: 1, space: .memory32, size: rounded))
    }
    description.baseAddressRegisters.append(
      .init(
        index: VirtioCapabilities.bar, space: .memory64, size: VirtioCapabilities.barSize, prefetchable: true))
    description.capabilities = VirtioCapabilities.list(
      queueCount: queueCount, configurationSize: device.configuration.count)
    return description
  }

  public var status: VirtioStatus { registers.withLock { $0.common.status } }

  // MARK: VirtioTransport

  public func timer(_ timer: any OneShotTimer) -> any OneShotTimer { function.environment.timer(timer) }

  public func wake(queue index: Int) {
    if slots.indices.contains(index) { slots[index].wake() }
  }

  public func configurationChanged() {
    let live = registers.withLock { registers in
      registers.common.configurationChanged()
      return registers.common.isLive
    }
    if live { interrupts.signalConfiguration() }
  }

  /// Calls `body` with the lock held. Afterwards notifies the driver of a failure that occurred within it.
  @discardableResult
  func withRegisters<Result: Sendable>(_ body: (inout Registers) -> Result) -> Result {
    let (result, mustNotify) = registers.withLock { registers in
      let result = body(&registers)
      defer { registers.mustNotify = false }
      return (result, registers.mustNotify)
    }
    if mustNotify { interrupts.signalConfiguration() }
    return result
  }

  // MARK: FunctionModel

  public func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    guard bar == VirtioCapabilities.bar else { return width.allOnes }
    let within = Int(truncatingIfNeeded: offset & 0xfff)
    switch offset & ~0xfff {
    case VirtioCapabilities.common: return registers.withLock { $0.common.read(offset: within, width: width) }
    case VirtioCapabilities.interruptStatus: return within == 0 ? UInt64(interrupts.takeStatus()) : 0
    case VirtioCapabilities.device: return readDevice(offset: within, width: width)
    default: return 0
    }
  }

  public func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    guard bar == VirtioCapabilities.bar else { return }
    let within = Int(truncatingIfNeeded: offset & 0xfff)
    switch offset & ~0xfff {
    case VirtioCapabilities.common: writeCommon(offset: within, width: width, value: value)
    case VirtioCapabilities.device:
      if within + width.rawValue <= device.configuration.count {
        device.writeConfiguration(offset: within, width: width, value: value)
      }
    case VirtioCapabilities.notification:
      // The address, not the value, selects the queue (4.1.4.4).
      let stride = Int(VirtioCapabilities.notificationStride)
      if within % stride == 0, slots.indices.contains(within / stride) { slots[within / stride].wake() }
    default: break
    }
  }

  public func reset() {
    registers.withLock { reset(&$0) }
  }

  /// Ends each queue after its request in flight, and the datapaths.
  public func endRequests() {
    for slot in slots { slot.halt() }
    withRegisters { registers in
      registers.hasEnded = true
      for index in slots.indices { stopDatapath(index, continues: false, &registers) }
    }
  }

  public func released() { reset() }

  public func placed(bar: Int, at base: UInt64?, visible parts: [Range<UInt64>]) {
    guard bar == VirtioCapabilities.bar else { return }
    for slot in slots {
      let stride = VirtioCapabilities.notificationStride
      let offset = VirtioCapabilities.notification + stride * UInt64(slot.index)
      // A write that another region answers must not wake this queue.
      let isVisible = parts.contains { $0.contains(offset) && stride <= $0.upperBound - offset }
      slot.setDoorbell(at: isVisible ? base.map { $0 &+ offset } : nil)
    }
  }

  public func readConfiguration(offset: Int, width: AccessWidth) -> UInt64? {
    guard let window = function.capabilityOffsets.last else { return nil }
    let data = window + VirtioCapabilities.Window.data
    guard offset >= data, offset + width.rawValue <= data + 4, let (at, length) = windowTarget(window) else {
      return nil
    }
    let value = readRegion(bar: VirtioCapabilities.bar, offset: at, width: length) & length.allOnes
    // The value replaces the first `length` bytes of the data, which the driver then reads.
    var all: UInt32 = 0
    function.updateConfiguration { space in
      all = space.get(UInt32.self, data)
      all = all & ~UInt32(truncatingIfNeeded: length.allOnes) | UInt32(truncatingIfNeeded: value)
      space.set(data, all)
    }
    return UInt64(all) >> UInt64(8 * (offset - data))
  }

  public func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    if StandardOffset.commandBytes.overlaps(offset..<offset + width.rawValue) {
      // Notifications while Bus Master Enable was clear could not be served.
      followBusMaster()
      if function.requester.busMasterEnable { for slot in slots where slot.isRunning { slot.wake() } }
      return
    }
    followMessages()
    guard let window = function.capabilityOffsets.last else { return }
    let data = window + VirtioCapabilities.Window.data
    guard (data..<data + 4).overlaps(offset..<offset + width.rawValue), let (at, length) = windowTarget(window) else {
      return
    }
    // A write to any part of the data writes its first `length` bytes.
    var all: UInt32 = 0
    function.updateConfiguration { all = $0.get(UInt32.self, data) }
    writeRegion(bar: VirtioCapabilities.bar, offset: at, width: length, value: UInt64(all) & length.allOnes)
  }

  /// Returns the range that the configuration access window (4.1.4.9) refers to; nil if it is not valid.
  private func windowTarget(_ window: Int) -> (offset: UInt64, width: AccessWidth)? {
    func field(_ at: Int, _ width: AccessWidth) -> UInt64 {
      function.register(at: window + at, width: width)
    }
    guard field(VirtioCapabilities.Window.bar, .byte) == UInt64(VirtioCapabilities.bar) else { return nil }
    let offset = field(VirtioCapabilities.Window.offset, .doubleword)
    let length = field(VirtioCapabilities.Window.length, .doubleword)
    guard length <= 4, let width = AccessWidth(rawValue: Int(length)), offset % length == 0,
      offset <= VirtioCapabilities.barSize - length
    else { return nil }
    return (offset, width)
  }

  // MARK: The structures

  private func readDevice(offset: Int, width: AccessWidth) -> UInt64 {
    let bytes = device.configuration
    return width.assemble(from: offset) { $0 < bytes.count ? bytes[$0] : 0 }
  }

  private func writeCommon(offset: Int, width: AccessWidth, value: UInt64) {
    let started = withRegisters { registers in
      switch registers.common.write(offset: offset, width: width, value: value) {
      case .none: break
      case .reset: reset(&registers)
      case .configurationVector(let vector): interrupts.setConfigurationVector(vector)
      case .queueVector(let queue, let vector):
        slots[queue].setVector(vector)
        updateCall(queue, &registers)
      case .enableQueue(let queue):
        if registers.common.isLive, !registers.hasEnded { start(queue, &registers) }
      case .resetQueue(let queue): end(queue, &registers)
      case .start:
        device.start(with: registers.common.accepted)
        for queue in slots.indices where registers.common.queues[queue].enabled {
          // The start of an earlier queue may have failed.
          if registers.common.isLive, !registers.hasEnded { start(queue, &registers) }
        }
        return true
      }
      return false
    }
    // A driver may have filled its queues before it set DRIVER_OK, without a notification.
    if started { for slot in slots where slot.isRunning { slot.wake() } }
  }

  private func reset(_ registers: inout Registers) {
    // Halt all queues before the wait for the first one, so that the wait lasts for one request at most.
    for slot in slots { slot.halt() }
    for slot in slots {
      end(slot.index, &registers)
      slot.setVector(CommonConfiguration.noVector)
    }
    registers.common.reset()
    registers.session &+= 1
    interrupts.reset()
    device.reset()
  }
}
