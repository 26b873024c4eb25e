import Hardware
import Linux

/// The guest's RAM as the memory that devices reach. `GuestMemory` has all members of the protocol, but its module does
/// not import `Hardware`.
extension GuestMemory: PhysicalMemory {}

/// Blocks a thread of the host for the guest's side.
final class ThreadParking: Parking {
  private let semaphore = Semaphore()

  func park() { semaphore.wait() }
  func unpark() { semaphore.signal() }
}
