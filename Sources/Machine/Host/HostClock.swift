import Devices
import Hardware
import Linux

/// The host's monotonic time, for a guest that runs in real time.
final class HostClock: MachineClock {
  var now: UInt64 { Clock.monotonic() }

  func makeTimer() throws(SystemError) -> any OneShotTimer { try ThreadTimer() }
}
