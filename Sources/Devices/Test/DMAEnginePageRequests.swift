import Hardware

/// The page requests of `dma-engine`'s jobs (PRI; PCI Express Base 10.4). A job that sends the last request of a group
/// waits for the group's response. No more groups are outstanding than Outstanding Page Request Allocation permits.
extension DMAEngine {
  /// Runs the request command.
  func request(_ job: inout DMAEngineJob) throws(Step) {
    let command = job.command
    try send(
      &job,
      PageRequest(
        address: command.source, prefix: job.prefix, reads: command.wantsRead, writes: command.wantsWrite,
        isLastInGroup: command.isLastInGroup, groupIndex: command.groupIndex))
    throw .finished(.success)
  }

  /// Requests a page that does not grant the wanted access, and waits.
  func requestPage(_ job: inout DMAEngineJob, _ access: Access) throws(Step) {
    guard job.requests < DMAEngineJob.maximumRequests else { throw .finished(.stillNotGranted) }
    var index = job.command.groupIndex
    if case .slot(let number) = job.channel {
      // Wait for a response: it frees an index.
      guard let free = state.withLock({ $0.freeGroupIndex(ofSlot: number) }) else { throw .waits }
      index = free
    }
    try send(
      &job,
      PageRequest(
        address: access.address, prefix: job.prefix, reads: access.wanted.contains(.read),
        writes: access.wanted.contains(.write), isLastInGroup: true, groupIndex: index))
  }

  /// Sends a page request, and waits if it is the last of its group.
  private func send(_ job: inout DMAEngineJob, _ request: PageRequest) throws(Step) {
    let awaits = request.isLastInGroup && !request.isStopMarker
    let limit = enables.pageRequestLimit
    let (channel, generation) = (job.channel, job.generation)
    let step = state.withLock { state -> Step? in
      guard state.continues(channel, generation) else { return .finished(.ended) }
      if awaits {
        guard state.outstandingGroups < limit else { return .waits }
        state.expect(
          .init(
            channel: channel, generation: generation, index: request.groupIndex, pasid: request.prefix?.pasid))
      }
      state.registers.pageRequests &+= 1
      return nil
    }
    if let step { throw step }
    job.requests += 1
    job.isWaiting = awaits
    switch port.requestPage(request) {
    case .queued: break
    case .discarded: if awaits { answer(.responseFailure, to: request) }
    case .answered(let code): answer(code, to: request)
    }
    if awaits { throw .waits }
  }

  private func answer(_ code: PageGroupResponse.Code, to request: PageRequest) {
    // Handle the answer like a response, but do not wake the worker, which is already running this job.
    _ = take(PageGroupResponse(code: code, groupIndex: request.groupIndex, pasid: request.prefix?.pasid))
  }

  func takeResponse(_ job: inout DMAEngineJob) throws(Step) {
    let (channel, generation) = (job.channel, job.generation)
    guard let code = state.withLock({ $0.takeCode(channel, generation) }) else { throw .waits }
    job.isWaiting = false
    switch code {
    case .success: if job.command.operation == .request { throw .finished(.success) }
    case .invalidRequest: throw .finished(.invalidRequest)
    case .responseFailure: throw .finished(.responseFailure)
    }
  }
}
