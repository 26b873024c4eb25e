import Glibc

/// Waits for a condition that another thread makes true. The limit of 20 s is long enough for a loaded machine.
/// - Returns: whether the condition became true.
public func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
  let end = ContinuousClock.now + .seconds(20)
  while try !condition() {
    guard ContinuousClock.now < end else { return false }
    usleep(200)
  }
  return true
}
