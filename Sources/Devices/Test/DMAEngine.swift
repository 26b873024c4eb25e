import Hardware
import PCI
import Synchronization

/// `dma-engine`: Nestling's own endpoint for IOMMU features that other test devices do not use. `DMAEngineRegisters`
/// and `DMAEngineSlot` document its programming interface. The command of COMMAND and the jobs of the slots run on the
/// engine's worker, in turns, so vCPUs do not wait for them.
///
/// Lock order: `jobs`, `cache`, `buffer`, `state`, the function's. A job holds `jobs` during its turn. An access of at
/// most a page holds `cache` from the lookup of its translation to its last byte, so that no access still uses a
/// translation when its invalidation is answered. Translation requests, page requests and invalidate completions are
/// sent with none of the locks held but `jobs`.
public final class DMAEngine: FunctionModel, TranslationCache {
  /// Outstanding Page Request Capacity.
  static let pageRequestCapacity = 32

  public let function: Function
  let port: any RequestPort
  let state = Mutex(State())
  let cache = Mutex(DMAEngineCache())
  let buffer = Mutex([UInt8](repeating: 0, count: DMAEngineRegisters.bufferSize))
  let jobs = Mutex(DMAEngineJobs())
  private let worker = Mutex<(any QueueWorker)?>(nil)

  /// - Parameter address: device and function on the bus to which the caller adds `function`.
  public init(environment: PCIEnvironment, address: RequesterID) {
    // QEMU does not use this device ID; its edu has 11e8.
    var description = FunctionDescription(vendorID: 0x1234, deviceID: 0x11e9, classCode: 0x088000)
    description.revisionID = 1
    description.subsystemVendorID = 0x1af4
    description.subsystemID = 0x1100
    description.expressType = environment.endpointType
    description.baseAddressRegisters = [
      .init(index: 0, space: .memory32, size: 0x1000),
      .init(index: 1, space: .memory32, size: 0x1000),
      .init(index: 2, space: .memory32, size: UInt64(DMAEngineRegisters.bufferSize)),
    ]
    description.msix = MSIX.Layout(vectorCount: DMAEngineRegisters.vectorCount, bar: 1, pendingOffset: 0x800)
    description.extendedCapabilities = [
      .addressTranslation(invalidateQueueDepth: 32), .pageRequest(capacity: UInt32(Self.pageRequestCapacity)),
      .processAddressSpace(width: 20),
    ]
    function = Function(description, at: address, environment: environment)
    port = function.environment.makeRequestPort()
    let made = function.environment.makeWorker(name: "dma-engine") { [weak self] in self?.work() }
    worker.withLock { $0 = made }
    function.install(self)
    port.connect(self)
  }

  func wake() { worker.withLock { $0 }?.wake() }

  // MARK: FunctionModel

  public func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    switch bar {
    case 0:
      let cached = UInt32(truncatingIfNeeded: cache.withLock { $0.entries.count })
      return state.withLock { state in
        state.registers.cached = cached
        state.registers.held = UInt32(state.heldTags.nonzeroBitCount)
        return state.read(offset, width)
      }
    case 2:
      return buffer.withLock { buffer in
        guard let at = Self.place(offset, width) else { return width.allOnes }
        return width.assemble(from: at) { buffer[$0] }
      }
    default: return 0
    }
  }

  public func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    switch bar {
    case 0: write(offset, width, value)
    case 2:
      buffer.withLock { buffer in
        guard let at = Self.place(offset, width) else { return }
        width.split(value, from: at) { buffer[$0] = $1 }
      }
    default: break
    }
  }

  private static func place(_ offset: UInt64, _ width: AccessWidth) -> Int? {
    offset <= UInt64(DMAEngineRegisters.bufferSize - width.rawValue) ? Int(offset) : nil
  }

  private func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
    let (effect, released) = state.withLock { state -> (DMAEngineRegisters.Effect, UInt32) in
      let effect = state.write(offset, width, value)
      var released: UInt32 = 0
      if effect.contains(.end), state.registers.running != nil {
        state.abandon(.command)
        finish(.init(result: .ended), of: .command, &state)
      }
      if effect.contains(.release) {
        released = state.heldTags
        state.heldTags = 0
        state.laterTags = 0
      }
      return (effect, released)
    }
    if released != 0 { port.completeInvalidations(released) }
    if effect.contains(.end) { updateStopped() }
    // Act without the lock, because the worker may run at once. A slot's job may wait for what a command has freed.
    if !effect.isDisjoint(with: [.work, .end]) { wake() }
  }

  public func reset() {
    // Each job stops before its next page. The reset waits for the page in flight, because software may reuse the
    // memory afterwards.
    state.withLock { $0.stop() }
    // Hold `jobs` until the slots are idle: otherwise the worker could begin their jobs again.
    let released = jobs.withLock { jobs in
      jobs.removeAll()
      return state.withLock { state in
        let released = state.heldTags
        state.reset()
        return released
      }
    }
    // With the cache empty, the held invalidations can be answered.
    cache.withLock { $0.removeAll() }
    buffer.withLock { buffer in
      for index in buffer.indices { buffer[index] = 0 }
    }
    if released != 0 { port.completeInvalidations(released) }
  }

  /// Stops each job before its next page.
  public func endRequests() { state.withLock { $0.stop() } }

  public func released() { port.connect(nil) }

  public func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    let enables = self.enables
    if !enables.translation { cache.withLock { $0.removeAll() } }
    guard let at = function.extendedCapability(PageRequestControl.id) else { return }
    let control = at + PageRequestControl.offset
    let isReset =
      (offset..<offset + width.rawValue).contains(control)
      && (value >> UInt64(8 * (control - offset)))[bit: PageRequestControl.reset.rawValue.trailingZeroBitCount]
    if isReset, !enables.pageRequests, state.withLock({ $0.failGroups() }) { wake() }
    updateStopped()
  }

  /// Updates PRI's Stopped bit from its enable bit and the outstanding groups.
  func updateStopped() {
    guard let at = function.extendedCapability(PageRequestControl.id) else { return }
    // Hold the lock until the bit is written, so that of several updates the last one counts.
    state.withLock { state in
      let isWaiting = state.outstandingGroups > 0
      function.updateConfiguration { space in
        let status = at + PageRequestStatus.offset
        var value = PageRequestStatus(rawValue: space.get(UInt16.self, status))
        let control = PageRequestControl(rawValue: space.get(UInt16.self, at + PageRequestControl.offset))
        if control.contains(.enable) || isWaiting { value.remove(.stopped) } else { value.insert(.stopped) }
        space.set(status, value.rawValue)
      }
    }
  }

  /// The features that software has enabled in the function's capabilities.
  struct Enables {
    var translation: Bool
    var pageRequests: Bool
    /// The number of page requests that may be outstanding at once.
    var pageRequestLimit: Int
    var pasid: ProcessAddressSpaceControl
  }

  var enables: Enables {
    func word(_ id: UInt16, _ offset: Int) -> UInt16 {
      guard let at = function.extendedCapability(id) else { return 0 }
      return UInt16(truncatingIfNeeded: function.register(at: at + offset, width: .word))
    }
    return Enables(
      translation: AddressTranslationControl(
        rawValue: word(AddressTranslationControl.id, AddressTranslationControl.offset)
      ).isEnabled,
      pageRequests: PageRequestControl(rawValue: word(PageRequestControl.id, PageRequestControl.offset))
        .contains(.enable),
      pageRequestLimit: min(
        max(Int(word(PageRequestControl.id, PageRequestControl.allocationOffset)), 1), Self.pageRequestCapacity),
      pasid: ProcessAddressSpaceControl(
        rawValue: word(ProcessAddressSpaceControl.id, ProcessAddressSpaceControl.offset)))
  }

  /// Ends a job. Called with the state's lock held, so that software that sees the channel idle can rely on the
  /// interrupt.
  func finish(_ outcome: DMAEngineOutcome, of channel: DMAEngineChannel, _ state: inout State) {
    guard let command = state.running(channel) else { return }
    let vector = state.finish(outcome, of: channel)
    if command.interrupts { function.msix?.signal(vector) }
  }

  // MARK: TranslationCache

  public func invalidate(_ request: InvalidateRequest) {
    cache.withLock { $0.invalidate(request) }
    let tag: UInt32 = 1 << UInt32(request.tag & 31)
    let answering = state.withLock { state in
      state.registers.invalidations &+= 1
      state.registers.invalidatedFirst = request.first
      state.registers.invalidatedLast = request.last
      state.registers.invalidatedPASID = request.pasid.map { $0 | 1 << 31 } ?? 0
      let answering = state.registers.answering
      if answering != .atOnce { state.heldTags |= tag }
      if answering == .later { state.laterTags |= tag }
      return answering
    }
    switch answering {
    case .atOnce: port.completeInvalidations(tag)
    case .later: wake()
    case .never: break
    // The next tag is outstanding only if all 32 are.
    case .wrongTag: port.completeInvalidations(1 << UInt32((request.tag &+ 1) & 31))
    }
  }

  public func receive(_ response: PageGroupResponse) {
    if take(response) { wake() }
  }

  /// Records a response.
  /// - Returns: whether the worker can continue a job: the response answers an outstanding group.
  func take(_ response: PageGroupResponse) -> Bool {
    let isExpected = state.withLock { $0.take(response) }
    let isFailure = response.code == .responseFailure
    if let at = function.extendedCapability(PageRequestControl.id), isFailure || !isExpected {
      function.updateConfiguration { space in
        var status = PageRequestStatus(rawValue: space.get(UInt16.self, at + PageRequestStatus.offset))
        if isFailure { status.insert(.responseFailure) }
        if !isExpected { status.insert(.unexpectedGroupIndex) }
        space.set(at + PageRequestStatus.offset, status.rawValue)
      }
    }
    updateStopped()
    return isExpected
  }
}
