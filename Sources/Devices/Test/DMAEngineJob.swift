import Hardware
import PCI
import Synchronization

/// The state of a running job of `dma-engine`: its progress, and whether it waits for a page.
struct DMAEngineJob {
  let channel: DMAEngineChannel
  let command: DMAEngineRegisters.Command
  let generation: UInt64
  /// The number of bytes moved.
  var done: UInt64 = 0
  /// The number of page requests for the current page.
  var requests = 0
  /// Whether the job waits for a page group response.
  var isWaiting = false
  /// The address of the current access.
  var address: UInt64 = 0

  static let maximumRequests = 16
  /// The size of the copy buffer, and of the longest access, in bytes.
  static let pageSize: UInt64 = 0x1000
  /// The number of bytes after which the next job has its turn.
  static let turnSize: UInt64 = 0x10000

  var prefix: PASIDPrefix? {
    command.pasid.map { PASIDPrefix(pasid: $0, isPrivileged: command.isPrivileged, executes: command.executes) }
  }
}

/// The running jobs by channel, and the bytes that the job in turn is copying.
struct DMAEngineJobs {
  private var jobs = [DMAEngineJob?](repeating: nil, count: DMAEngineChannel.all.count)
  fileprivate var bytes = [UInt8](repeating: 0, count: Int(DMAEngineJob.pageSize))

  subscript(channel: DMAEngineChannel) -> DMAEngineJob? {
    get { jobs[channel.index] }
    set { jobs[channel.index] = newValue }
  }

  mutating func removeAll() { for index in jobs.indices { jobs[index] = nil } }
}

extension DMAEngine {
  /// The reason why a job's turn ended.
  enum Step: Error {
    case finished(DMAEngineRegisters.Result)
    /// The job requested a page, or may not request one yet; a response wakes the worker.
    case waits
    case turnEnded
  }

  /// The next access of a transfer, to its source or to its destination.
  struct Access {
    var address: UInt64
    var count: Int
    var wanted: DMAAccess
  }

  // MARK: The worker

  func work() {
    var continues = true
    while continues {
      let (later, running) = state.withLock { state -> (UInt32, UInt32) in
        defer {
          state.heldTags &= ~state.laterTags
          state.laterTags = 0
        }
        var running: UInt32 = 0
        for channel in DMAEngineChannel.all where state.running(channel) != nil {
          running[bit: channel.index] = true
        }
        return (state.laterTags, running)
      }
      if later != 0 { port.completeInvalidations(later) }
      continues = false
      for channel in DMAEngineChannel.all where running[bit: channel.index] {
        if jobs.withLock({ advance(channel, &$0) }) { continues = true }
      }
    }
  }

  /// Gives a channel's job a turn: it runs until it ends or waits, at most for `turnSize` bytes.
  /// - Returns: whether the job can already continue.
  private func advance(_ channel: DMAEngineChannel, _ jobs: inout DMAEngineJobs) -> Bool {
    let (command, generation) = state.withLock { ($0.running(channel), $0.generation(of: channel)) }
    guard let command else {
      jobs[channel] = nil
      return false
    }
    var current: DMAEngineJob
    if let job = jobs[channel], job.generation == generation {
      current = job
    } else {
      current = DMAEngineJob(channel: channel, command: command, generation: generation)
    }
    do throws(Step) {
      try checkContinues(current)
      if current.isWaiting { try takeResponse(&current) }
      try run(&current, &jobs.bytes)
    } catch {
      switch error {
      case .turnEnded:
        jobs[channel] = current
        return true
      case .waits:
        jobs[channel] = current
        // If the root complex itself answered the page request, the job continues at once.
        return state.withLock { $0.hasCode(channel, generation) }
      case .finished(let result):
        jobs[channel] = nil
        finish(current, result)
      }
    }
    return false
  }

  private func checkContinues(_ job: DMAEngineJob) throws(Step) {
    guard state.withLock({ $0.continues(job.channel, job.generation) }) else { throw .finished(.ended) }
  }

  /// Ends a job in the channel's registers and, for a slot, in its completion record.
  private func finish(_ job: DMAEngineJob, _ result: DMAEngineRegisters.Result) {
    var outcome = DMAEngineOutcome(result: result, done: job.done)
    switch result {
    case .none, .success, .badCommand, .badRange, .ended: break
    default: outcome.fault = job.address
    }
    let (isCurrent, record) = state.withLock { state -> (Bool, UInt64?) in
      // A reset, or the end bit of CONTROL, came first.
      guard state.generation(of: job.channel) == job.generation else { return (false, nil) }
      if case .slot(let number) = job.channel { return (true, state.slots[number].record) }
      return (true, nil)
    }
    guard isCurrent else { return }
    // A reset waits for the record, because this turn holds `jobs`.
    if let record, case .slot(let number) = job.channel {
      outcome.recordFailed = !write(outcome, ofSlot: number, at: record)
    }
    state.withLock { state in
      guard state.generation(of: job.channel) == job.generation else { return }
      finish(outcome, of: job.channel, &state)
      // The next command needs a new job.
      state.abandon(job.channel)
    }
  }

  /// Writes a completion record, without PASID.
  /// - Returns: whether it reached memory.
  private func write(_ outcome: DMAEngineOutcome, ofSlot number: Int, at address: UInt64) -> Bool {
    guard address % DMAEngineSlot.recordAlignment == 0 else { return false }
    let memory = port.dmaPort(for: nil)
    do throws(DMAError) {
      try memory.storeUInt64(outcome.done, at: address + 8)
      try memory.storeUInt64(outcome.fault, at: address + 16)
      try memory.storeUInt64(UInt64(outcome.result.rawValue) | UInt64(number) << 32, at: address)
      return true
    } catch {
      return false
    }
  }

  private func run(_ job: inout DMAEngineJob, _ bytes: inout [UInt8]) throws(Step) {
    let command = job.command
    guard isValid(job), let operation = command.operation else { throw .finished(.badCommand) }
    job.address = 0
    try checkEnables(command)
    switch operation {
    case .read, .write:
      let size = UInt64(DMAEngineRegisters.bufferSize)
      guard command.bufferOffset <= size, command.count <= size - command.bufferOffset else {
        throw .finished(.badRange)
      }
      try transfer(&job, operation, &bytes)
    case .copy:
      guard command.count <= DMAEngineRegisters.maximumCopy else { throw .finished(.badRange) }
      try transfer(&job, operation, &bytes)
    case .translate: try translate(job)
    case .request: try request(&job)
    case .stop:
      guard let pasid = command.pasid else { throw .finished(.badCommand) }
      count(\.pageRequests)
      _ = port.requestPage(.stopMarker(pasid: pasid))
      throw .finished(.success)
    }
  }

  private func isValid(_ job: DMAEngineJob) -> Bool {
    switch job.channel {
    case .command: job.command.isValid
    case .slot(let number): state.withLock { $0.slots[number].isCommandValid }
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

  func count(_ counter: WritableKeyPath<DMAEngineRegisters, UInt32>) {
    state.withLock { $0.registers[keyPath: counter] &+= 1 }
  }

  // MARK: Transfers

  private func transfer(
    _ job: inout DMAEngineJob, _ operation: DMAEngineRegisters.Operation, _ bytes: inout [UInt8]
  ) throws(Step) {
    let command = job.command
    let turnEnd = job.done + DMAEngineJob.turnSize
    try perform { () throws(DMAError) in
      if operation != .write { try checkTransfer(at: command.source, count: command.count) }
      if operation != .read { try checkTransfer(at: command.destination, count: command.count) }
    }
    while job.done < command.count {
      try checkContinues(job)
      guard job.done < turnEnd else { throw .turnEnded }
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
    job.address = access.address
    guard command.usesDeviceTLB else {
      let memory = command.isTranslated ? port.translatedPort : port.dmaPort(for: job.prefix)
      try perform { () throws(DMAError) in try body(memory, access.address, access.wanted) }
      return
    }
    // After an invalidation between the translation request and the access, the engine repeats the request. If software
    // never stops invalidating, COMMAND gives up, and a slot's job goes on in its next turn.
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
    throw job.channel == .command ? .finished(.completerAbort) : .turnEnded
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
      guard state.generation(of: job.channel) == job.generation else { return }
      state.registers.translated = translation.address
      state.registers.rights = rights
    }
    throw .finished(.success)
  }
}
