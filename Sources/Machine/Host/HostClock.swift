import Devices
import Hardware
import Linux

/// The host's time, for guests that run in it.
final class HostClock: MachineClock {
  var now: UInt64 { Clock.monotonic() }

  func makeTimer() throws(SystemError) -> any OneShotTimer { try ThreadTimer() }
}
