import FakeVFIO
import Glibc
import Linux
import Testing

@testable import Machine

/// Tests devices given as open files, which a monitor's client passed, on the fake kernel.
@Suite struct HandedOverDeviceTests {
  private func reference(_ path: String, _ kernel: FakeKernel) throws -> DescriptorReference {
    var reference = try DescriptorReference(text: "name")
    reference.file = PassedDescriptor(FileDescriptor(owning: kernel.open(path, flags: O_RDWR)))
    return reference
  }

  @Test func `a device given as an open file is passed through, and its file is released with it`() throws {
    let kernel = FakeKernel.full(1) { _, _ in }
    let path = kernel.state.withLock { $0.devices[0].path }
    weak var handedOver: PassedDescriptor?
    do {
      let file = try reference(path, kernel)
      handedOver = file.file
      let machine = try PassthroughBoard(
        kernel,
        [
          PassthroughBoard.options,
          PassthroughBoard.device(0, "i0") {
            $0.host = nil
            $0.file = file
          },
        ])
      let vendor = machine.readConfiguration(machine.address(1), 0, 2)
      #expect(vendor != 0xffff)
      machine.end()
    }
    // The end of the board releases the last reference to the file.
    #expect(handedOver == nil)
    #expect(kernel.complaints.filter { !$0.hasPrefix("file") } == [])
    #expect(kernel.complaints.count == 1)
  }
}
