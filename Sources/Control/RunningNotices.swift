import Machine
import Passthrough
import Synchronization

/// Writes lines about a running machine to standard error. A guest can cause triple faults without end, so their lines
/// are rate-limited.
final class RunningNotices: Sendable {
  private let stream = NoticeStream()
  private let tripleFaults = Mutex(NoticeLimit())

  func write(_ notice: MachineNotice) {
    switch notice {
    case .tripleFault(let processor, let instructionPointer):
      guard let omitted = tripleFaults.withLock({ $0.admit(at: HostTime.monotonic) }) else { return }
      let place = instructionPointer.map { " at 0x" + String($0, radix: 16) } ?? ""
      let others = omitted > 0 ? " (earlier triple faults not listed: \(omitted))" : ""
      stream.write("nestling: CPU \(processor): triple fault\(place), which counts as a reset by the guest\(others)\n")
    case .vhostRefused(let error):
      let reason = ErrorText.text(for: error)
      stream.write("nestling: vhost-net does not serve a queue (\(reason)): Nestling moves its packets itself\n")
    case .netdevProgramEnded(let id, let failure):
      stream.write(ErrorText.line([], "netdev \(ErrorText.quoted(id.text)): \(ErrorText.text(for: failure))"))
    case .reset, .shutdown, .powerDown, .paused, .resumed, .deviceDeleted, .unplugRefused, .deviceStatus,
      .streamConnected, .streamDisconnected, .vhostUserConnected, .vhostUserDisconnected:
      break
    }
  }

  func write(_ notice: PassthroughNotice) { stream.write(ErrorText.line(for: notice)) }

  /// Called after the machine has ended. Writes the count of omitted triple faults and the lines still queued. Waits at
  /// most one second.
  func finish() {
    let omitted = tripleFaults.withLock { $0.takeOmitted() }
    if omitted > 0 { stream.write("nestling: \(omitted) more triple faults\n") }
    stream.finish()
  }
}

/// Limits the rate of one type of notice: the first passes, then at most one in each `interval`.
struct NoticeLimit: Sendable {
  /// The minimum time between two notices that pass, in nanoseconds.
  static let interval: UInt64 = 10_000_000_000

  private var last: UInt64?
  private var omitted = 0

  /// - Parameter time: In nanoseconds, by a clock that never goes back.
  /// - Returns: The number of notices omitted since the last one that passed; nil if this one must be omitted, too.
  mutating func admit(at time: UInt64) -> Int? {
    if let last, time &- last < Self.interval {
      omitted += 1
      return nil
    }
    last = time
    return takeOmitted()
  }

  /// Returns the number of notices omitted since the last one that passed, and sets it to 0.
  mutating func takeOmitted() -> Int {
    defer { omitted = 0 }
    return omitted
  }
}
