import Hardware
import Linux
import PCI
import Synchronization
import VFIO

/// A function of the host on the guest's bus. Its BARs are memory of the guest's CPUs where VFIO maps them, and
/// trapped where not: the MSI-X table and pending bits always are. Decoding stays enabled on the device itself, whose
/// mappings would fault otherwise; the guest's own decode bits say where its CPUs find them.
///
/// Lock order: `slots` and `state` are leaves, but for the accelerator's own locks.
final class VFIOPCI: FunctionModel {
  let function: Function
  private let device: VFIODevice
  private let configuration: VFIORegion
  private let space: HostConfigurationSpace
  private let regions: [Int: VFIORegion]
  private let mappings: [Int: [RegionMapping]]
  private let interrupts: PassthroughInterrupts
  private let events: PassthroughEvents
  private let deviceMemory: (any DeviceMemory)?
  /// Of the BARs, while they are placed.
  private let slots = Mutex<[Int: [any AnyObject & Sendable]]>([:])
  private let state = Mutex(State())

  private struct State {
    /// Bits of the device's command register.
    var command: UInt16 = 0
    var interruptAsserted = false
    var pageRequests: PageRequestInterface?
  }

  private static let decoding: Command = [.memorySpaceEnable, .ioSpaceEnable]
  private static let passed: Command = [.busMasterEnable, .parityErrorResponse, .serrEnable]

  /// - Parameters:
  ///   - device: attached to where its requests are to go.
  ///   - address: on the guest's bus.
  ///   - services: what the guest is to see of its translation services.
  init(
    _ device: VFIODevice, environment: PCIEnvironment, deviceMemory: (any DeviceMemory)?, address: RequesterID,
    services: TranslationServices = []
  ) throws(PassthroughError.Problem) {
    self.device = device
    self.deviceMemory = deviceMemory
    do {
      let configuration = try device.region(7)
      self.configuration = configuration
      let bytes = Self.bytes(of: configuration, device)
      space = HostConfigurationSpace(bytes, services: services)
      let bars = try Self.bars(bytes, device)
      regions = bars.regions
      mappings = Self.mappings(of: bars.regions, space.msix, device)
      events = try PassthroughEvents()
      interrupts = PassthroughInterrupts(
        device, inner: environment.interrupts, msixCount: space.msix?.vectorCount ?? 0,
        intx: space.interruptPin > 0 ? events.interrupt : nil)
      function = Function(
        Self.description(space, bars.registers), at: address,
        environment: PCIEnvironment(
          memoryBus: environment.memoryBus, ioBus: environment.ioBus, memory: environment.memory,
          remapper: environment.remapper, interrupts: interrupts, workers: environment.workers))
    } catch {
      throw .registers(error)
    }
    guard interrupts.isPossible else { throw .accelerator }
    function.install(self)
    reset()
  }

  private static func bytes(of region: VFIORegion, _ device: VFIODevice) -> [UInt8] {
    var bytes: [UInt8] = []
    let size = min(max(region.size, 256), UInt64(ConfigurationSpace.size))
    for offset in stride(from: 0, to: size, by: 4) {
      bytes.append(
        littleEndian: UInt32(truncatingIfNeeded: device.read(region, offset: offset, width: 4) ?? 0xffff_ffff))
    }
    return bytes
  }

  private static func bars(
    _ bytes: [UInt8], _ device: VFIODevice
  ) throws(SystemError) -> (registers: [BaseAddressRegister], regions: [Int: VFIORegion]) {
    var registers: [BaseAddressRegister] = []
    var regions: [Int: VFIORegion] = [:]
    var index = 0
    while index < 6 {
      let bits = bytes.load(UInt32.self, at: StandardOffset.baseAddressRegisters + 4 * index)
      let is64 = bits & 7 == 4 && index < 5
      let region = try device.region(UInt32(index))
      let isIO = bits[bit: 0]
      if region.size >= (isIO ? 4 : 16), region.size.nonzeroBitCount == 1 {
        registers.append(
          BaseAddressRegister(
            index: index, space: isIO ? .io : is64 ? .memory64 : .memory32, size: region.size,
            prefetchable: !isIO && bits[bit: 3]))
        regions[index] = region
      }
      index += is64 ? 2 : 1
    }
    return (registers, regions)
  }

  /// What may be mapped, less the pages that are trapped.
  private static func mappings(
    of regions: [Int: VFIORegion], _ msix: MSIX.Layout?, _ device: VFIODevice
  ) -> [Int: [RegionMapping]] {
    var trapped: [Int: [Range<UInt64>]] = [:]
    if let msix {
      trapped[msix.bar, default: []].append(pages(msix.tableOffset, msix.tableSize))
      trapped[msix.pendingBar, default: []].append(pages(msix.pendingOffset, msix.pendingSize))
    }
    return regions.reduce(into: [:]) { mappings, entry in
      let (bar, region) = entry
      // What cannot be mapped is trapped.
      mappings[bar] = Self.areas(of: region, without: trapped[bar] ?? [])
        .compactMap { try? RegionMapping($0, of: region, device: device) }
    }
  }

  private static func pages(_ offset: UInt64, _ size: UInt64) -> Range<UInt64> {
    let end = (offset + size + 0xfff) & ~0xfff
    return offset & ~0xfff..<end
  }

  /// Areas that begin and end with pages, without the ranges named.
  static func areas(of region: VFIORegion, without trapped: [Range<UInt64>]) -> [VFIORegion.Area] {
    var areas = region.mappableAreas.compactMap { area -> Range<UInt64>? in
      let (end, overflow) = area.offset.addingReportingOverflow(area.size)
      guard !overflow, end <= region.size else { return nil }
      let first = (area.offset + 0xfff) & ~0xfff
      let last = end & ~0xfff
      return first < last ? first..<last : nil
    }
    for range in trapped {
      areas = areas.flatMap { area -> [Range<UInt64>] in
        guard area.overlaps(range) else { return [area] }
        return [
          area.lowerBound..<max(area.lowerBound, range.lowerBound),
          min(area.upperBound, range.upperBound)..<area.upperBound,
        ].filter { !$0.isEmpty }
      }
    }
    return areas.map { VFIORegion.Area(offset: $0.lowerBound, size: $0.upperBound - $0.lowerBound) }
  }

  private static func description(
    _ space: HostConfigurationSpace, _ registers: [BaseAddressRegister]
  ) -> FunctionDescription {
    let header = space.header
    var description = FunctionDescription(
      vendorID: header.load(UInt16.self, at: StandardOffset.vendorID),
      deviceID: header.load(UInt16.self, at: StandardOffset.deviceID),
      classCode: header.load(UInt32.self, at: StandardOffset.revisionID) >> 8)
    description.revisionID = header[StandardOffset.revisionID]
    description.subsystemVendorID = header.load(UInt16.self, at: StandardOffset.subsystemVendorID)
    description.subsystemID = header.load(UInt16.self, at: StandardOffset.subsystemID)
    description.interruptPin = space.interruptPin
    description.baseAddressRegisters = registers
    description.msix = space.msix.flatMap { layout in
      // A table beyond its BAR is no table.
      registers.contains { $0.index == layout.bar && layout.tableOffset + layout.tableSize <= $0.size } ? layout : nil
    }
    description.msiVectorCount = space.msiVectorCount
    description.configuration = space.given
    return description
  }

  // MARK: Life

  /// From now on the device's interrupts, errors and requests are heard.
  func start(_ handler: @escaping @Sendable (PassthroughEvents.Event) -> Void) throws(SystemError) {
    try events.start(of: device, name: "vfio \(function.requester.id)") { [weak self] event in
      if event == .interrupt { self?.interruptCame() } else { handler(event) }
    }
  }

  /// Takes the function off the board. The device goes when nobody holds it any more.
  func remove() {
    // Its DMA ends before its tables do.
    write(command: Self.decoding.rawValue)
    function.remove()
    let ended = state.withLock { state in
      defer { state.pageRequests = nil }
      return state.pageRequests
    }
    ended?.stop()
    interrupts.reset()
    events.stop()
  }

  func reset() {
    pageRequests?.reset()
    interrupts.reset()
    // No request may leave the device between its reset and the guest's next driver.
    write(command: Self.decoding.rawValue)
    if device.hasReset { try? device.reset() } else { try? device.resetBus() }
    state.withLock { state in
      state.command = 0
      state.interruptAsserted = false
    }
    write(command: Self.decoding.rawValue)
    interrupts.choose(space.interruptPin > 0 ? .intx : .none)
  }

  // MARK: Regions

  func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    regions[bar].flatMap { device.read($0, offset: offset, width: width.rawValue) } ?? width.allOnes
  }

  func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    if let region = regions[bar] { device.write(region, offset: offset, width: width.rawValue, value: value) }
  }

  func placed(bar: Int, at base: UInt64?) {
    // The old place first: the slots of the two may overlap.
    slots.withLock { $0[bar] = nil }
    guard let base, let deviceMemory, base & 0xfff == 0 else { return }
    let made = (mappings[bar] ?? []).compactMap { mapping in
      deviceMemory.map(base &+ mapping.area.offset, size: mapping.area.size, hostAddress: mapping.hostAddress)
    }
    slots.withLock { $0[bar] = made }
  }

  // MARK: Page requests

  /// Where the guest sees the capability; nil where it is not shown.
  var pageRequestOffset: Int? { space.translationServices[PageRequestControl.id] }

  /// Whether the device has page requests, shown or not.
  var hasPageRequests: Bool { space.hasPageRequests }

  /// What the guest's accesses to the capability mean; nil: nothing.
  var pageRequests: PageRequestInterface? {
    get { state.withLock { $0.pageRequests } }
    set { state.withLock { $0.pageRequests = newValue } }
  }

  // MARK: Configuration space

  func configurationRead(offset: Int, width: AccessWidth, own: UInt64) -> UInt64 {
    var mask: UInt64 = 0
    for index in 0..<width.rawValue { mask |= UInt64(space.direct[offset + index]) << (8 * index) }
    guard mask != 0 else {
      return pageRequests?.configurationRead(offset..<offset + width.rawValue, own: own) ?? own
    }
    let theirs = device.read(configuration, offset: UInt64(offset), width: width.rawValue) ?? width.allOnes
    return own & ~mask | theirs & mask
  }

  func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    let touched = offset..<offset + width.rawValue
    if touched.overlaps(StandardOffset.command..<StandardOffset.command + 2) {
      let own = Command(
        rawValue: UInt16(truncatingIfNeeded: function.readConfiguration(offset: StandardOffset.command, width: .word)))
      write(command: own.intersection(Self.passed).union(Self.decoding).rawValue)
    }
    forward(touched, value)
    pageRequests?.configurationWritten(touched, value: value)
    if function.msix?.isEnabled == true {
      interrupts.choose(.msix)
    } else if function.msi?.isEnabled == true {
      interrupts.choose(.msi)
    } else {
      interrupts.choose(space.interruptPin > 0 ? .intx : .none)
    }
  }

  /// Bytes that are the device's, with one access where all of them are.
  private func forward(_ touched: Range<Int>, _ value: UInt64) {
    if touched.allSatisfy({ space.direct[$0] != 0 }) {
      device.write(configuration, offset: UInt64(touched.lowerBound), width: touched.count, value: value)
      return
    }
    for at in touched where space.direct[at] != 0 {
      let byte = value >> UInt64(8 * (at - touched.lowerBound)) & 0xff
      device.write(configuration, offset: UInt64(at), width: 1, value: byte)
    }
  }

  private func write(command: UInt16) {
    state.withLock { state in
      guard state.command != command else { return }
      state.command = command
      device.write(configuration, offset: UInt64(StandardOffset.command), width: 2, value: UInt64(command))
    }
  }

  // MARK: INTx

  private func interruptCame() {
    state.withLock { $0.interruptAsserted = true }
    function.setINTx(true)
  }

  /// The guest ended a level-triggered interrupt of the pin that INTx is wired to: it has seen to the device, or did
  /// not; then the device signals again.
  func interruptEnded() {
    let wasAsserted = state.withLock { state in
      defer { state.interruptAsserted = false }
      return state.interruptAsserted
    }
    guard wasAsserted else { return }
    function.setINTx(false)
    events.unmask()
  }
}
