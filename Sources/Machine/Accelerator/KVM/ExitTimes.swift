import KVM
import Linux
import Synchronization

/// Measures the time for which exits keep one CPU out of the guest: from each return of KVM_RUN to the next entry,
/// without the time inside KVM_RUN.
///
/// While measuring is off, it costs one load for each exit. While measuring is on, it reads the clock and the thread's
/// count of preemptions twice for each exit.
///
/// Lock order: code that holds its lock takes no other lock.
final class ExitTimes: Sendable {
  private let isMeasuring = Atomic<Bool>(false)
  private let summary = Mutex(ExitSummary())

  /// The beginning of a measured exit.
  struct Beginning {
    fileprivate let exit: VMExit
    fileprivate let time: UInt64
    fileprivate let preemptions: Int
  }

  /// Restarts or ends the measurement.
  func measure(_ isOn: Bool) {
    summary.withLock { $0 = ExitSummary() }
    isMeasuring.store(isOn, ordering: .relaxed)
  }

  /// The exits so far; nil while measuring is off.
  var read: ExitSummary? { isMeasuring.load(ordering: .relaxed) ? summary.withLock { $0 } : nil }

  // MARK: On the CPU's thread

  @inline(__always)
  func begin(_ exit: VMExit) -> Beginning? {
    isMeasuring.load(ordering: .relaxed) ? beginning(exit) : nil
  }

  @inline(never)
  private func beginning(_ exit: VMExit) -> Beginning {
    Beginning(exit: exit, time: Clock.monotonic(), preemptions: Thread.preemptions)
  }

  @inline(never)
  func end(_ beginning: Beginning) {
    let duration = Clock.monotonic() &- beginning.time
    let isUndisturbed = Thread.preemptions == beginning.preemptions
    summary.withLock { $0.add(duration, beginning.exit.cause, isUndisturbed: isUndisturbed) }
  }
}

extension VMExit {
  fileprivate var cause: ExitSummary.Cause {
    switch self {
    case .portRead(let port, _): .port(port, written: nil)
    case .portWrite(let port, _, let value): .port(port, written: value)
    case .memoryRead(let address, _): .memory(address, written: nil)
    case .memoryWrite(let address, _, let value): .memory(address, written: value)
    case .endOfInterrupt(let vector): .endOfInterrupt(vector: vector)
    case .halt: .halt
    case .interrupted: .signal
    case .shutdown, .systemEvent, .internalError, .entryFailed, .unknown: .other
    }
  }
}
