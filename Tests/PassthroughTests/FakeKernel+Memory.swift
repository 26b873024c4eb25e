import FakeVFIO
import Linux
import VFIO

@testable import Passthrough

extension FakeKernel {
  /// Maps 16 MiB of a guest's RAM for its devices.
  func makeMemory(name: String? = nil) throws -> PassthroughMemory {
    try PassthroughMemory(
      of: IOMMUFD(calls: self), name: name, memory: GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
  }

  /// Opens and binds the device with this number.
  func openDevice(_ number: Int, for memory: PassthroughMemory) throws -> VFIODevice {
    try VFIODevice(
      file: KernelFile(opening: "/dev/vfio/devices/vfio\(number)", calls: self), to: memory.iommufd)
  }
}
