import Glibc
import Hardware

/// A counter on which threads wait while it is zero: the C library's semaphore.
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

/// A parking place whose user can wait until a thread parks.
public final class SemaphoreParking: Parking {
  private let permits = TestSemaphore()
  private let sleepers = TestSemaphore()

  public init() {}

  public func park() {
    sleepers.signal()
    permits.wait()
  }

  public func unpark() { permits.signal() }

  /// Waits until a thread parks. Each park ends one wait.
  public func waitForSleeper() { sleepers.wait() }
}
