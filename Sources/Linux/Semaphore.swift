import Glibc

/// A counter that threads wait on while it is zero: sem_init(3), within one process.
@safe
public final class Semaphore: @unchecked Sendable {
  private let semaphore: UnsafeMutablePointer<sem_t>

  public init() {
    // SAFETY: allocated here, initialized once, and destroyed when nobody can wait any more. With these arguments
    // sem_init does not fail.
    unsafe semaphore = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
    unsafe sem_init(semaphore, 0, 0)
  }

  deinit {
    unsafe sem_destroy(semaphore)
    unsafe semaphore.deallocate()
  }

  /// Adds one.
  public func signal() {
    // SAFETY: alive as long as `self`. A counter at its limit wakes all the same.
    unsafe sem_post(semaphore)
  }

  /// Waits until it is not zero, and takes one.
  public func wait() {
    // SAFETY: as above.
    while unsafe sem_wait(semaphore) != 0 && errno == EINTR {}
  }
}
