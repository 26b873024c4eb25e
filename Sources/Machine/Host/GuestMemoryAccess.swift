import Hardware
import Linux

/// The guest's RAM is what the guest's side calls physical memory: the two were written for each other, in modules
/// that do not know each other.
extension GuestMemory: PhysicalMemory {}
