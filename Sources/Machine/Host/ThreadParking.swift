import Hardware
import Linux

/// Where a thread of the host sleeps on behalf of the guest's side.
final class ThreadParking: Parking {
  private let semaphore = Semaphore()

  func park() { semaphore.wait() }
  func unpark() { semaphore.signal() }
}
