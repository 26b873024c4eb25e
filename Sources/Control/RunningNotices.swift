import Machine
import Synchronization

/// Lines about a running machine on standard error. A guest can cause a triple fault as often as it likes, so those
/// lines have a limit.
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
    case .reset, .shutdown, .powerDown, .paused, .resumed, .deviceDeleted, .unplugRefused, .deviceStatus: break
    }
  }

  func tell(_ notice: PassthroughNotice) { stream.write(ErrorText.line(for: notice)) }

  /// Writes what is left when the machine has ended. It waits a second at most.
  func finish() {
    let omitted = tripleFaults.withLock { $0.takeOmitted() }
    if omitted > 0 { stream.write("nestling: \(omitted) more triple faults\n") }
    stream.finish()
  }
}

/// Limits notices of one kind: the first passes, then one in each interval, with the number of those left out.
struct NoticeLimit: Sendable {
  /// The least time between two that pass, in nanoseconds.
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

  /// How many were left out since the last one that passed; counts anew from here.
  mutating func takeOmitted() -> Int {
    defer { omitted = 0 }
    return omitted
  }
}
