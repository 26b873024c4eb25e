import FakeVFIO
import Linux
import VFIO

@testable import Machine

/// What tests of a machine's parts do with a kernel of our own, and see of it.
extension FakeKernel {
  /// 16 MiB of a guest's RAM, mapped for its devices.
  func makeMemory(name: String? = nil) throws -> PassthroughMemory {
    try PassthroughMemory(
      of: IOMMUFD(calls: self), name: name, memory: GuestMemory(size: 16 << 20, lowLimit: 16 << 20))
  }

  /// The device with this number, bound.
  func openDevice(_ number: Int, for memory: PassthroughMemory) throws -> VFIODevice {
    try VFIODevice(
      file: KernelFile(opening: "/dev/vfio/devices/vfio\(number)", calls: self), to: memory.iommufd)
  }

  /// What a device goes by; nil for nothing.
  func attached(_ number: Int) -> Object? {
    state.withLock { state in state.devices[number].attachedTo.flatMap { state.objects[$0] } }
  }

  /// Where the first stages of the nested tables are, in order.
  var nestedRoots: [UInt64] {
    state.withLock { state in
      state.objects.values.compactMap { if case .nested(_, let root) = $0 { root } else { nil } }.sorted()
    }
  }
}
