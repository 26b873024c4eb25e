import Glibc
import Linux
import Testing

@testable import KVM

/// KVM's own device for the host's devices. That one of VFIO's files is taken is for the lab to show; here, that others are
/// not, and leave nothing.
@Suite(.serialized, .enabled(if: TestGuest.isPossible, "/dev/kvm cannot be used here"))
struct HostDeviceFileTests {
  @Test func aFileThatIsNoneOfVFIOs() throws {
    let guest = try TestGuest(TestGuest.done)
    let files = HostDeviceFiles(of: guest.machine)
    let event = try EventDescriptor()
    let error = #expect(throws: SystemError.self) { try files.add(event.rawValue) }
    // Without VFIO in the kernel there is no such device; with it, it takes VFIO's files alone.
    #expect(
      error.map { ["KVM_CREATE_DEVICE", "KVM_DEV_VFIO_FILE_ADD"].contains($0.call) && $0.code != EFAULT } == true,
      "\(String(describing: error))")
    let none = #expect(throws: SystemError.self) { try files.add(-1) }
    #expect(none?.call == error?.call)
    // What was never added is no reason to trap.
    files.remove(event.rawValue)
  }
}
