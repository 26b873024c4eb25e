import Hardware
import Linux

/// The guest's RAM is the physical memory of the guest's side. The two types fit each other, but neither module imports
/// the other.
extension GuestMemory: PhysicalMemory {}

/// Blocks a thread of the host for the guest's side.
final class ThreadParking: Parking {
  private let semaphore = Semaphore()

  func park() { semaphore.wait() }
  func unpark() { semaphore.signal() }
}
