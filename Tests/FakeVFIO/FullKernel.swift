import Hardware

/// Kernels whose devices have every feature, and inspection of the state that a process has in a kernel.
extension FakeKernel {
  /// The configuration space of an endpoint: power management at 0x40, MSI at 0x50, MSI-X at 0x70, PCI Express at 0x80,
  /// vendor data at 0xc0; AER at 0x100, SR-IOV at 0x140, a serial number at 0x180.
  package static var endpointImage: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    bytes.store(UInt32(0x1042_1af4), at: 0)
    bytes.store(UInt16(0x10), at: 6)
    bytes.store(UInt32(0x0100_0001), at: 8)
    bytes[0x34] = 0x40
    bytes[0x3d] = 1
    bytes.store(UInt32(0xc803_5001), at: 0x40)  // D1, D2 and PME from D3
    bytes.store(UInt32(0x0000_0003), at: 0x44)
    bytes.store(UInt32(0x0180_7005), at: 0x50)
    bytes.store(UInt32(0x0003_8011), at: 0x70)
    bytes.store(UInt32(0x0000_2002), at: 0x74)
    bytes.store(UInt32(0x0000_3002), at: 0x78)
    bytes.store(UInt32(0x0002_c010), at: 0x80)
    bytes.store(UInt32(0x0000_8fc2), at: 0x84)
    bytes.store(UInt32(0x0007_6543), at: 0x8c)  // Link Capabilities
    bytes.store(UInt32(0x0108_0009), at: 0xc0)
    bytes.store(UInt32(0x1401_0001), at: 0x100)
    bytes.store(UInt32(0x1801_0010), at: 0x140)
    bytes.store(UInt32(0x0001_0003), at: 0x180)
    return bytes
  }

  /// Returns a kernel with `count` devices that have every feature.
  /// - Parameter change: Changes the device with this number.
  package static func full(_ count: Int, _ change: (Int, inout Device) -> Void = { _, _ in }) -> FakeKernel {
    FakeKernel(
      devices: (0..<count).map { number in
        var device = Device(path: "/dev/vfio/devices/vfio\(number)")
        // The image has no extended capabilities, so that reading it takes less time.
        var image = Array(endpointImage[..<256])
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

  /// Returns the object that a device is attached to, or nil.
  package func attached(_ number: Int) -> Object? {
    state.withLock { state in state.devices[number].attachedTo.flatMap { state.objects[$0] } }
  }

  /// The root addresses of the nested tables' first stages, in order.
  package var nestedRoots: [UInt64] {
    state.withLock { state in
      state.objects.values.compactMap { if case .nested(_, let root) = $0 { root } else { nil } }.sorted()
    }
  }

  /// The kernel's resources that this process holds: files, objects of its iommufds, mappings and attachments. An
  /// operation without a lasting effect must leave them unchanged.
  package var standing: [String] {
    state.withLock { state in
      state.files.map { "file \($0)" }.sorted() + state.objects.map { "object \($0)" }.sorted()
        + state.mapped.flatMap { space, mappings in mappings.map { "IOAS \(space): \($0)" } }.sorted()
        + ["\(state.hostMappings) mmaps"]
        + state.devices.map { "\($0.path): \($0.boundTo ?? 0), \($0.attachedTo ?? 0)" }
        + state.devices.flatMap { device in device.pasids.sorted { $0 < $1 }.map { "\(device.path): \($0)" } }
    }
  }
}
