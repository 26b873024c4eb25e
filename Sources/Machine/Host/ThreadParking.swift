import Hardware
import Linux

/// Blocks a thread of the host for the guest's side.
final class ThreadParking: Parking {
  private let semaphore = Semaphore()

  func park() { semaphore.wait() }
  func unpark() { semaphore.signal() }
}
