import FakeVFIO
import Hardware
import Linux
import VFIO

@testable import Machine

/// Helpers for tests of a machine's parts on the fake kernel.
extension FakeKernel {
  /// Returns a kernel with `count` devices that have every feature.
  /// - Parameter change: Changes the device with this number.
  static func full(_ count: Int, _ change: (Int, inout Device) -> Void = { _, _ in }) -> FakeKernel {
    FakeKernel(
      devices: (0..<count).map { number in
        var device = Device(path: "/dev/vfio/devices/vfio\(number)")
        // The image has no extended capabilities, so that reading it takes less time.
        var image = Array(HostConfigurationSpaceTests.image[..<256])
        image.store(UInt32(0x4), at: 0x18)
        image.store(UInt32(0x1), at: 0x20)
        device.regions[2] = (0x4000, 0b111, [])
        device.regions[4] = (0x20, 0b011, [])
        device.regions[6] = (0x1000, 0b001, [])
        device.regions[7] = (256, 0b011, [])
        device.contents[7] = image
        device.contents[2] = [UInt8](repeating: 0x5a, count: 0x4000)
        device.contents[6] = (0..<0x800).map { UInt8(truncatingIfNeeded: $0) }
        device.interrupts[3] = 1
        device.powerOffset = 0x44
        device.bus = 10 + number
        change(number, &device)
        return device
      })
  }

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

  /// Returns the object that a device is attached to, or nil.
  func attached(_ number: Int) -> Object? {
    state.withLock { state in state.devices[number].attachedTo.flatMap { state.objects[$0] } }
  }

  /// The root addresses of the nested tables' first stages, in order.
  var nestedRoots: [UInt64] {
    state.withLock { state in
      state.objects.values.compactMap { if case .nested(_, let root) = $0 { root } else { nil } }.sorted()
    }
  }
}

extension FakeKernel {
  /// The kernel's resources that this process holds: files, objects of its iommufds, mappings and attachments. An
  /// operation without a lasting effect must leave them unchanged.
  var standing: [String] {
    state.withLock { state in
      state.files.map { "file \($0)" }.sorted() + state.objects.map { "object \($0)" }.sorted()
        + state.mapped.flatMap { space, mappings in mappings.map { "IOAS \(space): \($0)" } }.sorted()
        + ["\(state.hostMappings) mmaps"]
        + state.devices.map { "\($0.path): \($0.boundTo ?? 0), \($0.attachedTo ?? 0)" }
    }
  }
}
