import Glibc
import Linux
import Testing

@testable import KVM

/// KVM's pseudo-device for VFIO files. Here it must refuse other files; the lab shows that it accepts VFIO's.
@Suite(.serialized, .enabled(if: TestGuest.isPossible, "/dev/kvm cannot be used here"))
struct HostDeviceFileTests {
  @Test("KVM refuses a file that is not VFIO's, and removing it does nothing") func aFileThatIsNoneOfVFIOs() throws {
    let guest = try TestGuest(TestGuest.done)
    let files = HostDeviceFiles(of: guest.machine)
    let event = try EventDescriptor()
    let error = #expect(throws: SystemError.self) { try files.add(event.rawValue) }
    // A kernel without VFIO lacks this KVM device. A kernel with VFIO accepts only VFIO's files.
    #expect(
      error.map { ["KVM_CREATE_DEVICE", "KVM_DEV_VFIO_FILE_ADD"].contains($0.call) && $0.code != EFAULT } == true,
      "\(String(describing: error))")
    let none = #expect(throws: SystemError.self) { try files.add(-1) }
    #expect(none?.call == error?.call)
    // Removing a file that was never added must not trap.
    files.remove(event.rawValue)
  }
}
