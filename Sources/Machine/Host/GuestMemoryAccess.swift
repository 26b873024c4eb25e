import Hardware
import Linux

/// The guest's RAM is the physical memory of the guest's side. The two types fit each other, but neither module imports
/// the other.
extension GuestMemory: PhysicalMemory {}
