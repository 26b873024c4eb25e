import Hardware
import PCI
import Synchronization

/// The state of a running command of `dma-engine`: its progress, and whether it waits for a page.
struct DMAEngineJob {
  let command: DMAEngineRegisters.Command
  let generation: UInt64
  /// The number of bytes moved.
  var done: UInt64 = 0
  /// The number of page requests for the current page.
  var requests = 0
  /// Whether the command waits for a page group response.
  var isWaiting = false

  static let maximumRequests = 16
  /// The size of the copy buffer, and of the longest access, in bytes.
  static let pageSize: UInt64 = 0x1000

  var prefix: PASIDPrefix? {
    command.pasid.map { PASIDPrefix(pasid: $0, isPrivileged: command.isPrivileged, executes: command.executes) }
  }
}

extension DMAEngine {
  /// The reason why a command's current run ended.
  private enum Step: Error {
    case finished(DMAEngineRegisters.Result)
    /// The command requested a page; the response wakes the worker.
    case waits
  }

  /// The next access of a transfer, to its source or to its destination.
  private struct Access {
    var address: UInt64
    var count: Int
    var wanted: DMAAccess
  }

  // MARK: The worker

  func work() {
    let later = state.withLock { state in
      defer {
        state.heldTags &= ~state.laterTags
        state.laterTags = 0
      }
      return state.laterTags
    }
    if later != 0 { port.completeInvalidations(later) }
    // If the root complex itself answers a page request, the command continues at once.
    while job.withLock({ advance(&$0) }) {}
  }

  /// Runs the command until it ends or waits.
  /// - Returns: whether the command can already continue.
  private func advance(_ job: inout DMAEngineJob?) -> Bool {
    let (command, generation) = state.withLock { ($0.registers.running, $0.generation) }
    guard let command else {
      job = nil
      return false
    }
    var current: DMAEngineJob
    if let job, job.generation == generation {
      current = job
    } else {
      current = DMAEngineJob(command: command, generation: generation)
    }
    do throws(Step) {
      if current.isWaiting { try takeResponse(&current) }
      try run(&current)
    } catch {
      switch error {
      case .waits:
        current.isWaiting = true
        job = current
        return state.withLock { $0.generation == generation && $0.awaited?.code != nil }
      case .finished(let result):
        job = nil
        let done = current.done
        state.withLock { state in
          // A reset, or the end bit of CONTROL, came first.
          guard state.generation == generation else { return }
          state.registers.done = done
          // The next command needs a new job.
          state.generation &+= 1
          finish(result, &state)
        }
      }
    }
    return false
  }

  private func run(_ job: inout DMAEngineJob) throws(Step) {
    let command = job.command
    guard command.isValid, let operation = command.operation else { throw .finished(.badCommand) }
    try checkEnables(command)
    switch operation {
    case .read, .write:
      let size = UInt64(DMAEngineRegisters.bufferSize)
      guard command.bufferOffset <= size, command.count <= size - command.bufferOffset else {
        throw .finished(.badRange)
      }
      try transfer(&job, operation)
    case .copy:
      guard command.count <= DMAEngineRegisters.maximumCopy else { throw .finished(.badRange) }
      try transfer(&job, operation)
    case .translate: try translate(job)
    case .request: try request(&job)
    case .stop:
      guard let pasid = command.pasid else { throw .finished(.badCommand) }
      count(\.pageRequests)
      _ = port.requestPage(.stopMarker(pasid: pasid))
      throw .finished(.success)
    }
  }

  private func checkEnables(_ command: DMAEngineRegisters.Command) throws(Step) {
    let enables = self.enables
    var isEnabled = function.requester.busMasterEnable
    if command.pasid != nil { isEnabled = isEnabled && enables.pasid.contains(.enable) }
    if command.isPrivileged { isEnabled = isEnabled && enables.pasid.contains(.privilegedMode) }
    if command.executes { isEnabled = isEnabled && enables.pasid.contains(.executePermission) }
    if command.usesDeviceTLB || command.isTranslated || command.operation == .translate {
      isEnabled = isEnabled && enables.translation
    }
    if command.requestsPages || command.operation == .request || command.operation == .stop {
      isEnabled = isEnabled && enables.pageRequests
    }
    guard isEnabled else { throw .finished(.notEnabled) }
  }

  private func count(_ counter: WritableKeyPath<DMAEngineRegisters, UInt32>) {
    state.withLock { $0.registers[keyPath: counter] &+= 1 }
  }

  // MARK: Transfers

  private func transfer(_ job: inout DMAEngineJob, _ operation: DMAEngineRegisters.Operation) throws(Step) {
    let command = job.command
    try perform { () throws(DMAError) in
      if operation != .write { try checkTransfer(at: command.source, count: command.count) }
      if operation != .read { try checkTransfer(at: command.destination, count: command.count) }
    }
    var bytes = [UInt8](repeating: 0, count: Int(DMAEngineJob.pageSize))
    while job.done < command.count {
      guard state.withLock({ $0.generation }) == job.generation else { throw .finished(.ended) }
      var count = min(command.count - job.done, DMAEngineJob.pageSize)
      // Each access lies within one page on both sides.
      if operation != .write { count = min(count, Self.rest(command.source &+ job.done)) }
      if operation != .read { count = min(count, Self.rest(command.destination &+ job.done)) }
      let size = Int(count)
      if operation == .write {
        let at = Int(command.bufferOffset + job.done)
        buffer.withLock { buffer in
          for index in 0..<size { bytes[index] = buffer[at + index] }
        }
      } else {
        try read(&job, command.source &+ job.done, &bytes, size)
      }
      if operation == .read {
        let at = Int(command.bufferOffset + job.done)
        buffer.withLock { buffer in
          for index in 0..<size { buffer[at + index] = bytes[index] }
        }
      } else {
        try write(&job, command.destination &+ job.done, bytes, size)
      }
      job.done += count
      job.requests = 0
    }
    throw .finished(.success)
  }

  private static func rest(_ address: UInt64) -> UInt64 {
    DMAEngineJob.pageSize - address & (DMAEngineJob.pageSize - 1)
  }

  private func read(_ job: inout DMAEngineJob, _ address: UInt64, _ bytes: inout [UInt8], _ count: Int) throws(Step) {
    let wanted: DMAAccess = job.command.executes ? [.read, .execute] : .read
    try access(&job, Access(address: address, count: count, wanted: wanted)) {
      (port, address, access) throws(DMAError) in
      try port.read(from: address, into: &bytes, 0..<count, for: access)
    }
  }

  private func write(_ job: inout DMAEngineJob, _ address: UInt64, _ bytes: [UInt8], _ count: Int) throws(Step) {
    try access(&job, Access(address: address, count: count, wanted: .write)) { (memory, address, _) throws(DMAError) in
      try memory.writeRequest(bytes, 0..<count, to: address)
    }
  }

  /// Performs one access: untranslated, translated, or through the device TLB, as the command specifies.
  private func access(
    _ job: inout DMAEngineJob, _ access: Access,
    _ body: (any DMAPort, UInt64, DMAAccess) throws(DMAError) -> Void
  ) throws(Step) {
    let command = job.command
    guard command.usesDeviceTLB else {
      let memory = command.isTranslated ? port.translatedPort : port.dmaPort(for: job.prefix)
      try perform { () throws(DMAError) in try body(memory, access.address, access.wanted) }
      return
    }
    // After an invalidation between the translation request and the access, the engine repeats the request. The limit
    // ends the command if software never stops invalidating.
    for _ in 0..<DMAEngineJob.maximumRequests {
      let epoch = cache.withLock { $0.epoch }
      var translation = cache.withLock { $0.lookup(access.address, prefix: job.prefix) }
      var isFresh = false
      if translation.map({ !Self.grants($0, access.wanted) }) ?? true {
        translation = try requestTranslation(access.address, noWrite: !access.wanted.contains(.write), job.prefix)
        isFresh = true
      }
      guard let translation else { throw .finished(.completerAbort) }
      if translation.isUntranslatedOnly {
        let memory = port.dmaPort(for: job.prefix)
        try perform { () throws(DMAError) in try body(memory, access.address, access.wanted) }
        return
      }
      guard Self.grants(translation, access.wanted) else {
        guard command.requestsPages else { throw .finished(.notGranted) }
        try requestPage(&job, access)
        return
      }
      let address = translation.address | access.address & .lowBits(translation.shift)
      // The access holds the cache's lock until its last byte, so an invalidation waits for it.
      let outcome = cache.withLock { cache -> (isDone: Bool, error: DMAError?) in
        if isFresh {
          guard cache.insert(translation, for: access.address, prefix: job.prefix, askedIn: epoch) else {
            return (false, nil)
          }
        } else if cache.epoch != epoch {
          return (false, nil)
        }
        do throws(DMAError) {
          try body(port.translatedPort, address, access.wanted)
          return (true, nil)
        } catch {
          return (true, error)
        }
      }
      if let error = outcome.error { throw .finished(Self.result(of: error)) }
      if outcome.isDone { return }
    }
    throw .finished(.completerAbort)
  }

  private func perform(_ body: () throws(DMAError) -> Void) throws(Step) {
    do {
      try body()
    } catch {
      throw .finished(Self.result(of: error))
    }
  }

  private static func result(of error: DMAError) -> DMAEngineRegisters.Result {
    switch error {
    case .disabled: .notEnabled
    case .translation: .refused
    case .notMemory: .notMemory
    }
  }

  private static func grants(_ translation: DeviceTranslation, _ wanted: DMAAccess) -> Bool {
    (!wanted.contains(.read) || translation.isReadable) && (!wanted.contains(.write) || translation.isWritable)
      && (!wanted.contains(.execute) || translation.isExecutable)
  }

  // MARK: Translation requests

  private func requestTranslation(
    _ address: UInt64, noWrite: Bool, _ prefix: PASIDPrefix?
  ) throws(Step) -> DeviceTranslation {
    count(\.translations)
    switch port.translate(address, noWrite: noWrite, prefix: prefix) {
    case .success(let translation): return translation
    case .unsupportedRequest: throw .finished(.unsupportedRequest)
    case .completerAbort: throw .finished(.completerAbort)
    }
  }

  private func translate(_ job: DMAEngineJob) throws(Step) {
    let command = job.command
    let epoch = cache.withLock { $0.epoch }
    let translation = try requestTranslation(command.source, noWrite: command.noWrite, job.prefix)
    if command.usesDeviceTLB, translation.isReadable || translation.isWritable {
      cache.withLock { _ = $0.insert(translation, for: command.source, prefix: job.prefix, askedIn: epoch) }
    }
    var rights: UInt32 = 0
    rights[bit: 0] = translation.isReadable
    rights[bit: 1] = translation.isWritable
    rights[bit: 2] = translation.isExecutable
    rights[bit: 3] = translation.isPrivileged
    rights[bit: 4] = translation.isUntranslatedOnly
    rights[bit: 5] = translation.isNonSnooped
    rights[bits: 8...15] = UInt32(truncatingIfNeeded: translation.shift)
    state.withLock { state in
      guard state.generation == job.generation else { return }
      state.registers.translated = translation.address
      state.registers.rights = rights
    }
    throw .finished(.success)
  }

  // MARK: Page requests

  private func request(_ job: inout DMAEngineJob) throws(Step) {
    let command = job.command
    try send(
      &job,
      PageRequest(
        address: command.source, prefix: job.prefix, reads: command.wantsRead, writes: command.wantsWrite,
        isLastInGroup: command.isLastInGroup, groupIndex: command.groupIndex))
    if command.isLastInGroup, command.wantsRead || command.wantsWrite || command.pasid == nil { throw .waits }
    throw .finished(.success)
  }

  /// Requests a page that does not grant the wanted access, and waits.
  private func requestPage(_ job: inout DMAEngineJob, _ access: Access) throws(Step) {
    guard job.requests < DMAEngineJob.maximumRequests else { throw .finished(.stillNotGranted) }
    job.requests += 1
    try send(
      &job,
      PageRequest(
        address: access.address, prefix: job.prefix, reads: access.wanted.contains(.read),
        writes: access.wanted.contains(.write), isLastInGroup: true, groupIndex: job.command.groupIndex))
    throw .waits
  }

  /// Sends a page request. If it is the last of its group, a response follows, possibly before this returns.
  private func send(_ job: inout DMAEngineJob, _ request: PageRequest) throws(Step) {
    let awaits = request.isLastInGroup && !request.isStopMarker
    let generation = job.generation
    let goesOn = state.withLock { state in
      guard state.generation == generation else { return false }
      state.registers.pageRequests &+= 1
      if awaits {
        // Record this before the request is sent, because the response may arrive at once.
        state.awaited = Awaited(groupIndex: request.groupIndex, pasid: request.prefix?.pasid)
      }
      return true
    }
    guard goesOn else { throw .finished(.ended) }
    switch port.requestPage(request) {
    case .queued: break
    case .discarded: if awaits { answer(.responseFailure, to: request) }
    case .answered(let code): answer(code, to: request)
    }
  }

  private func answer(_ code: PageGroupResponse.Code, to request: PageRequest) {
    // Handle the answer like a response, but do not wake the worker, which is already running this command.
    _ = take(PageGroupResponse(code: code, groupIndex: request.groupIndex, pasid: request.prefix?.pasid))
  }

  private func takeResponse(_ job: inout DMAEngineJob) throws(Step) {
    let code = state.withLock { state -> PageGroupResponse.Code? in
      guard let code = state.awaited?.code else { return nil }
      state.awaited = nil
      return code
    }
    guard let code else { throw .waits }
    updateStopped()
    job.isWaiting = false
    switch code {
    case .success: if job.command.operation == .request { throw .finished(.success) }
    case .invalidRequest: throw .finished(.invalidRequest)
    case .responseFailure: throw .finished(.responseFailure)
    }
  }
}
