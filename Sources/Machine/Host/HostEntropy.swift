import Devices
import Linux

/// Entropy from getrandom(2), which does not block once the host has booted.
final class HostEntropy: Devices.EntropySource {
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int { RandomSource.fill(&bytes, count: count) }

  func onReady(_ handler: @escaping @Sendable () -> Void) {}
}
