import Devices
import Linux

/// virtio-rng over getrandom(2), which does not wait once the host has started.
final class HostEntropy: Devices.EntropySource {
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int { RandomSource.fill(&bytes, count: count) }

  func onReady(_ handler: @escaping @Sendable () -> Void) {}
}
