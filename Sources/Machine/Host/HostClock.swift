import Devices
import Hardware
import Linux

/// The host's clocks, in nanoseconds.
public enum HostTime {
  /// The time of day since 1970.
  public static var now: UInt64 { Clock.realtime() }
  /// The time since an unspecified moment. It never decreases.
  public static var monotonic: UInt64 { Clock.monotonic() }
}

/// The host's monotonic time, for a guest that runs in real time.
final class HostClock: MachineClock {
  private let loop: EventLoop

  /// - Parameter loop: calls the handlers of the timers, which must not block.
  init(on loop: EventLoop) { self.loop = loop }

  var now: UInt64 { Clock.monotonic() }

  func makeTimer() -> any OneShotTimer { LoopTimer(on: loop) }
}

/// A one-shot timer of the host's monotonic clock. Releasing it stops it.
final class LoopTimer: OneShotTimer {
  private let timer: EventLoop.Timer

  init(on loop: EventLoop) { timer = EventLoop.Timer(on: loop) }

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    timer.start(at: Clock.monotonic() + UInt64(milliseconds) * 1_000_000, handler)
  }
}
