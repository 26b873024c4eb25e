import Glibc
import Hardware

/// A counter that threads wait on while it is zero, on the C library's semaphore.
public final class TestSemaphore: @unchecked Sendable {
  private let semaphore = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)

  public init() { sem_init(semaphore, 0, 0) }

  deinit {
    sem_destroy(semaphore)
    semaphore.deallocate()
  }

  public func signal() { sem_post(semaphore) }
  public func wait() { while sem_wait(semaphore) != 0 {} }
}

/// A parking place that tells when somebody comes to sleep there.
public final class SemaphoreParking: Parking {
  private let permits = TestSemaphore()
  private let sleepers = TestSemaphore()

  public init() {}

  public func park() {
    sleepers.signal()
    permits.wait()
  }

  public func unpark() { permits.signal() }

  /// Returns when a thread has come to sleep, once for each time that one did.
  public func waitForSleeper() { sleepers.wait() }
}
