import Glibc

/// Waits for what another thread brings about: so long that a loaded machine does not matter, and not for ever.
/// - Returns: whether it came to be so.
public func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
  let end = ContinuousClock.now + .seconds(20)
  while try !condition() {
    guard ContinuousClock.now < end else { return false }
    usleep(200)
  }
  return true
}
