import Machine
import Synchronization

/// What a person hears of a machine that runs, on standard error. A guest can bring such a line about as often as it
/// likes, so those of one kind have a limit.
final class RunningNotices: Sendable {
  private let stream = NoticeStream()
  private let tripleFaults = Mutex(NoticeLimit())

  func tell(_ notice: MachineNotice) {
    switch notice {
    case .tripleFault(let processor, let instructionPointer):
      guard let omitted = tripleFaults.withLock({ $0.admit(at: HostTime.monotonic) }) else { return }
      let place = instructionPointer.map { " at 0x" + String($0, radix: 16) } ?? ""
      let others = omitted > 0 ? " (and \(omitted) more before)" : ""
      stream.write("nestling: CPU \(processor): triple fault\(place); the guest is reset\(others)\n")
    case .reset, .shutdown, .powerDown, .paused, .resumed, .deviceDeleted: break
    }
  }

  func tell(_ notice: PassthroughNotice) { stream.write(ErrorText.line(for: notice)) }

  /// The machine has ended. Returns when all is written, or cannot be soon.
  func finish() {
    let omitted = tripleFaults.withLock { $0.takeOmitted() }
    if omitted > 0 { stream.write("nestling: \(omitted) more triple faults\n") }
    stream.finish()
  }
}

/// Of many like notices the first passes, then one in a while, which says how many were left out.
struct NoticeLimit: Sendable {
  /// Between two that pass, in nanoseconds.
  static let interval: UInt64 = 10_000_000_000

  private var last: UInt64?
  private var omitted = 0

  /// - Parameter time: in nanoseconds, never going back.
  /// - Returns: how many were left out since the last one that passed; nil where this one is left out as well.
  mutating func admit(at time: UInt64) -> Int? {
    if let last, time &- last < Self.interval {
      omitted += 1
      return nil
    }
    last = time
    return takeOmitted()
  }

  /// How many were left out, of which nobody has heard yet.
  mutating func takeOmitted() -> Int {
    defer { omitted = 0 }
    return omitted
  }
}
