import Glibc

/// A counter on which threads wait while it is zero: sem_init(3), within one process.
@safe
public final class Semaphore: @unchecked Sendable {
  private let semaphore: UnsafeMutablePointer<sem_t>

  public init() {
    // SAFETY: allocated here, initialized once, and destroyed when no thread can wait on it. With these arguments
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
    // SAFETY: the semaphore lives as long as `self`. Signalling fails only at the counter's limit, where no thread
    // waits.
    unsafe sem_post(semaphore)
  }

  /// Waits until the counter is not zero, and subtracts one.
  public func wait() {
    // SAFETY: as above.
    while unsafe sem_wait(semaphore) != 0 && errno == EINTR {}
  }
}
