import Hardware
import PCI
import Synchronization

/// `dma-engine`: Nestling's own endpoint for IOMMU features that other test devices do not use. `DMAEngineRegisters`
/// documents its programming interface. Commands run on the engine's worker, so vCPUs do not wait for them.
///
/// Lock order: `job`, `cache`, `buffer`, `state`, the function's. A command holds `job` while it runs. An access of at
/// most a page holds `cache` from the lookup of its translation to its last byte, so that no access still uses a
/// translation when its invalidation is answered. Translation requests, page requests and invalidate completions are
/// sent with none of the locks held but `job`.
public final class DMAEngine: FunctionModel, TranslationCache {
  struct State {
    var registers = DMAEngineRegisters()
    /// Changes with a reset and the end of a command: a command that began in an earlier generation must stop.
    var generation: UInt64 = 0
    /// The tags of the unanswered invalidate requests.
    var heldTags: UInt32 = 0
    /// The tags among `heldTags` that the worker will answer.
    var laterTags: UInt32 = 0
    /// The page group response for which a command waits.
    var awaited: Awaited?
  }

  /// A page group response for which a command waits.
  struct Awaited {
    var groupIndex: UInt16
    var pasid: UInt32?
    /// The response's code; nil until the response arrives.
    var code: PageGroupResponse.Code?
  }

  public let function: Function
  let port: any RequestPort
  let state = Mutex(State())
  let cache = Mutex(DMAEngineCache())
  let buffer = Mutex([UInt8](repeating: 0, count: DMAEngineRegisters.bufferSize))
  let job = Mutex<DMAEngineJob?>(nil)
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
      .addressTranslation(invalidateQueueDepth: 32), .pageRequest(capacity: 32), .processAddressSpace(width: 20),
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
        return state.registers.read(offset, width)
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
      let effect = state.registers.write(offset, width, value)
      var released: UInt32 = 0
      if effect == .end || effect == .endAndRelease, state.registers.running != nil {
        state.generation &+= 1
        state.awaited = nil
        finish(.ended, &state)
      }
      if effect == .release || effect == .endAndRelease {
        released = state.heldTags
        state.heldTags = 0
        state.laterTags = 0
      }
      return (effect, released)
    }
    if released != 0 { port.completeInvalidations(released) }
    if effect == .end || effect == .endAndRelease { updateStopped() }
    // Act without the lock, because the worker may run at once.
    if effect == .start { wake() }
  }

  public func reset() {
    // The command stops before its next page. The reset waits for the page in flight, because software may reuse the
    // memory afterwards.
    state.withLock { $0.generation &+= 1 }
    job.withLock { $0 = nil }
    let released = state.withLock { state in
      let released = state.heldTags
      state = State(generation: state.generation &+ 1)
      return released
    }
    // With the cache empty, the held invalidations can be answered.
    cache.withLock { $0.removeAll() }
    buffer.withLock { buffer in
      for index in buffer.indices { buffer[index] = 0 }
    }
    if released != 0 { port.completeInvalidations(released) }
  }

  /// Stops a command before its next page.
  public func endRequests() { state.withLock { $0.generation &+= 1 } }

  public func released() { port.connect(nil) }

  public func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    let enables = self.enables
    if !enables.translation { cache.withLock { $0.removeAll() } }
    guard let at = function.extendedCapability(PageRequestControl.id) else { return }
    let control = at + PageRequestControl.offset
    let isReset =
      (offset..<offset + width.rawValue).contains(control)
      && (value >> UInt64(8 * (control - offset)))[bit: PageRequestControl.reset.rawValue.trailingZeroBitCount]
    if isReset, !enables.pageRequests { fail(.responseFailure) }
    updateStopped()
  }

  /// Updates PRI's Stopped bit from its enable bit and the outstanding request.
  func updateStopped() {
    guard let at = function.extendedCapability(PageRequestControl.id) else { return }
    let isWaiting = state.withLock { $0.awaited != nil }
    function.updateConfiguration { space in
      let status = at + PageRequestStatus.offset
      var value = PageRequestStatus(rawValue: space.get(UInt16.self, status))
      let control = PageRequestControl(rawValue: space.get(UInt16.self, at + PageRequestControl.offset))
      if control.contains(.enable) || isWaiting { value.remove(.stopped) } else { value.insert(.stopped) }
      space.set(status, value.rawValue)
    }
  }

  /// The features that software has enabled in the function's capabilities.
  struct Enables {
    var translation: Bool
    var pageRequests: Bool
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
      pasid: ProcessAddressSpaceControl(
        rawValue: word(ProcessAddressSpaceControl.id, ProcessAddressSpaceControl.offset)))
  }

  /// Ends the command. Called with the state's lock held, so that software that sees the engine idle can rely on the
  /// interrupt.
  func finish(_ result: DMAEngineRegisters.Result, _ state: inout State) {
    guard let command = state.registers.running else { return }
    state.registers.finish(result)
    if command.interrupts { function.msix?.signal(state.registers.vector) }
  }

  /// Ends the wait for a page group response that will not arrive.
  private func fail(_ code: PageGroupResponse.Code) {
    let isWaiting = state.withLock { state in
      guard state.awaited != nil else { return false }
      state.awaited?.code = code
      return true
    }
    if isWaiting { wake() }
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
  /// - Returns: whether a command waits for it.
  func take(_ response: PageGroupResponse) -> Bool {
    let (isAwaited, isFailure) = state.withLock { state -> (Bool, Bool) in
      state.registers.responses &+= 1
      state.registers.responseWord =
        UInt32(response.groupIndex) | UInt32(response.code.rawValue) << 12 | (response.pasid == nil ? 0 : 1 << 16)
        | 1 << 31
      state.registers.responsePASID = response.pasid ?? 0
      guard let awaited = state.awaited, awaited.code == nil, awaited.groupIndex == response.groupIndex,
        awaited.pasid == response.pasid
      else { return (false, response.code == .responseFailure) }
      state.awaited?.code = response.code
      return (true, response.code == .responseFailure)
    }
    if let at = function.extendedCapability(PageRequestControl.id), isFailure || !isAwaited {
      function.updateConfiguration { space in
        var status = PageRequestStatus(rawValue: space.get(UInt16.self, at + PageRequestStatus.offset))
        if isFailure { status.insert(.responseFailure) }
        if !isAwaited { status.insert(.unexpectedGroupIndex) }
        space.set(at + PageRequestStatus.offset, status.rawValue)
      }
    }
    return isAwaited
  }
}
