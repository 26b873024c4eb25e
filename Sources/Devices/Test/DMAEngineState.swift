import Hardware
import PCI

/// Where a job of `dma-engine` comes from: the engine's COMMAND register, or one of the slots.
enum DMAEngineChannel: Hashable, Sendable {
  case command
  /// The slot's number, less than `DMAEngineSlot.count`.
  case slot(Int)

  static let all: [DMAEngineChannel] = [.command] + (0..<DMAEngineSlot.count).map { .slot($0) }

  /// The place in `all`.
  var index: Int {
    switch self {
    case .command: 0
    case .slot(let number): number + 1
    }
  }
}

/// How a job ended.
struct DMAEngineOutcome: Sendable {
  var result: DMAEngineRegisters.Result
  var done: UInt64 = 0
  /// The address of the access that ended the job.
  var fault: UInt64 = 0
  /// Whether the completion record did not reach memory.
  var recordFailed = false
}

extension DMAEngine {
  /// The registers, and what connects the jobs with the function's other threads. A plain value; the engine adds the
  /// lock.
  struct State {
    /// A group of page requests for which a response is due, or has arrived.
    struct Group {
      var channel: DMAEngineChannel
      /// The generation of the job that sent the requests. After the end of the job, the response is awaited by nothing,
      /// but the group index is in use until it arrives.
      var generation: UInt64
      var index: UInt16
      var pasid: UInt32?
      /// The response's code; nil until the response arrives.
      var code: PageGroupResponse.Code?
    }

    var registers = DMAEngineRegisters()
    private(set) var slots = [DMAEngineSlot](repeating: DMAEngineSlot(), count: DMAEngineSlot.count)
    /// The tags of the unanswered invalidate requests.
    var heldTags: UInt32 = 0
    /// The tags among `heldTags` that the worker will answer.
    var laterTags: UInt32 = 0
    /// By channel. A generation changes with a reset and the end of a job: a job that began in an earlier generation
    /// must stop.
    private var generations = [UInt64](repeating: 0, count: DMAEngineChannel.all.count)
    private var groups: [Group] = []

    init() { groups.reserveCapacity(2 * DMAEngine.pageRequestCapacity) }

    // MARK: Registers

    private func word(_ offset: UInt64) -> UInt32 {
      guard DMAEngineSlot.range.contains(offset) else { return registers.word(offset) }
      let within = offset - DMAEngineSlot.firstOffset
      return slots[Int(within / DMAEngineSlot.size)].word(within % DMAEngineSlot.size)
    }

    func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
      guard width.rawValue >= 4, offset % UInt64(width.rawValue) == 0 else { return 0 }
      let low = UInt64(word(offset))
      return width == .doubleword ? low : low | UInt64(word(offset &+ 4)) << 32
    }

    private mutating func write(_ offset: UInt64, _ value: UInt32) -> DMAEngineRegisters.Effect {
      guard DMAEngineSlot.range.contains(offset) else { return registers.write(offset, value) }
      let within = offset - DMAEngineSlot.firstOffset
      return slots[Int(within / DMAEngineSlot.size)].write(within % DMAEngineSlot.size, value) ? .work : []
    }

    mutating func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) -> DMAEngineRegisters.Effect {
      guard width.rawValue >= 4, offset % UInt64(width.rawValue) == 0 else { return [] }
      let effect = write(offset, UInt32(truncatingIfNeeded: value))
      guard width == .quadword else { return effect }
      return effect.union(write(offset &+ 4, UInt32(truncatingIfNeeded: value >> 32)))
    }

    // MARK: Jobs

    /// The command of a channel's running job, if any.
    func running(_ channel: DMAEngineChannel) -> DMAEngineRegisters.Command? {
      switch channel {
      case .command: registers.running
      case .slot(let number): slots[number].running
      }
    }

    func generation(of channel: DMAEngineChannel) -> UInt64 { generations[channel.index] }

    /// Whether a job may continue: neither a reset nor software has ended it.
    func continues(_ channel: DMAEngineChannel, _ generation: UInt64) -> Bool {
      guard generations[channel.index] == generation else { return false }
      return switch channel {
      case .command: true
      case .slot(let number): !slots[number].isEnding
      }
    }

    /// Lets a channel's job stop before its next page.
    mutating func abandon(_ channel: DMAEngineChannel) {
      generations[channel.index] &+= 1
      // Software chooses the group index of COMMAND, and may use it again at once. A slot's group index stays in use
      // until the response arrives.
      groups.removeAll { $0.channel == channel && (channel == .command || $0.code != nil) }
    }

    /// Lets all jobs stop before their next page.
    mutating func stop() { for index in generations.indices { generations[index] &+= 1 } }

    /// Resets the registers, and stops all jobs.
    mutating func reset() {
      let old = generations
      self = State()
      generations = old
      stop()
    }

    /// Ends a channel's job in its registers.
    /// - Returns: the vector of the channel's interrupt.
    mutating func finish(_ outcome: DMAEngineOutcome, of channel: DMAEngineChannel) -> Int {
      switch channel {
      case .command:
        registers.done = outcome.done
        registers.finish(outcome.result)
        return registers.vector
      case .slot(let number):
        slots[number].finish(outcome)
        registers.jobsDone[bit: number] = true
        return slots[number].vector
      }
    }

    // MARK: Groups of page requests

    /// The number of groups whose responses have not arrived.
    var outstandingGroups: Int { groups.count { $0.code == nil } }

    /// Returns an index for a group of a slot; nil while responses to 16 groups of the slot are due.
    func freeGroupIndex(ofSlot number: Int) -> UInt16? {
      let first = 0x100 + UInt16(16 * number)
      return (first..<first + 16).first { index in !groups.contains { $0.index == index && $0.code == nil } }
    }

    /// Records a group before its last request is sent, because the response may arrive at once.
    mutating func expect(_ group: Group) { groups.append(group) }

    /// Returns the code of the response to a job's group, and forgets the group; nil if the response has not arrived.
    mutating func takeCode(_ channel: DMAEngineChannel, _ generation: UInt64) -> PageGroupResponse.Code? {
      guard
        let index = groups.firstIndex(where: {
          $0.channel == channel && $0.generation == generation && $0.code != nil
        })
      else { return nil }
      return groups.remove(at: index).code
    }

    func hasCode(_ channel: DMAEngineChannel, _ generation: UInt64) -> Bool {
      groups.contains { $0.channel == channel && $0.generation == generation && $0.code != nil }
    }

    /// Records a response.
    /// - Returns: whether it answers an outstanding group.
    mutating func take(_ response: PageGroupResponse) -> Bool {
      registers.responses &+= 1
      registers.responseWord =
        UInt32(response.groupIndex) | UInt32(response.code.rawValue) << 12 | (response.pasid == nil ? 0 : 1 << 16)
        | 1 << 31
      registers.responsePASID = response.pasid ?? 0
      guard
        let at = groups.firstIndex(where: {
          $0.code == nil && $0.index == response.groupIndex && $0.pasid == response.pasid
        })
      else { return false }
      if generations[groups[at].channel.index] == groups[at].generation {
        groups[at].code = response.code
      } else {
        groups.remove(at: at)
      }
      return true
    }

    /// Reset of PRI: no more responses arrive, and the jobs that wait for one fail.
    /// - Returns: whether any group was outstanding.
    mutating func failGroups() -> Bool {
      let hadAny = outstandingGroups > 0
      groups.removeAll { generations[$0.channel.index] != $0.generation }
      for index in groups.indices where groups[index].code == nil { groups[index].code = .responseFailure }
      return hadAny
    }
  }
}
