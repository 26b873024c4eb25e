import CLinux
import FakeVFIO
import Glibc
import Linux
import Testing

@testable import VFIO

/// Regions, interrupts and resets of a device, against the fake kernel.
@Suite struct DeviceTests {
  private let kernel = FakeKernel()

  private func device() throws(SystemError) -> VFIODevice {
    try VFIODevice(
      file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: IOMMUFD(calls: kernel))
  }

  @Test("opening a missing device is an error with its path") func aDeviceThatIsNotThere() {
    let error = #expect(throws: SystemError.self) {
      try KernelFile(opening: "/dev/vfio/devices/vfio9", calls: kernel)
    }
    #expect(error == SystemError("open", "/dev/vfio/devices/vfio9", code: ENOENT))
    #expect(kernel.complaints == [])
  }

  @Test("a region has its size, rights and mappable areas") func regions() throws {
    kernel.state.withLock { state in
      // read, write, mmap
      state.devices[0].regions[0] = (0x1000, 0b111, [])
      state.devices[0].regions[2] = (0x4000, 0b111, [(0, 0x1000), (0x2000, 0x2000)])
      state.devices[0].regions[7] = (256, 0b011, [])
    }
    let device = try device()
    let plain = try device.region(0)
    #expect(plain.mappableAreas == [.init(offset: 0, size: 0x1000)] && !plain.mapsMSIXTable)
    let sparse = try device.region(2)
    #expect(sparse.mappableAreas == [.init(offset: 0, size: 0x1000), .init(offset: 0x2000, size: 0x2000)])
    #expect(sparse.mapsMSIXTable && sparse.isReadable && sparse.isWritable && sparse.offset == 2 << 40)
    let configuration = try device.region(7)
    #expect(configuration.mappableAreas == [] && configuration.size == 256)
    let missing = try device.region(1)
    #expect(missing.size == 0 && missing.mappableAreas == [] && !missing.isReadable)
    #expect(throws: SystemError.self) { try device.region(9) }
  }

  @Test("accesses stay within the region") func accessesStayWithinTheRegion() throws {
    kernel.state.withLock { $0.devices[0].regions[7] = (256, 0b011, []) }
    let device = try device()
    let region = try device.region(7)
    // The fake kernel returns consecutive bytes from the offset's low byte on.
    #expect(device.read(region, offset: 0x10, width: 4) == 0x1312_1110)
    #expect(device.read(region, offset: 0xff, width: 1) == 0xff)
    #expect(device.write(region, offset: 4, width: 2, value: 7))
    for (offset, width) in [(UInt64(256), 1), (255, 2), (.max, 8), (0, 0), (0, 9)] {
      #expect(device.read(region, offset: offset, width: width) == nil)
      #expect(!device.write(region, offset: offset, width: width, value: 0))
    }
  }

  @Test("a region's mapping keeps the device open") func aMappingKeepsTheDeviceOpen() throws {
    kernel.state.withLock { $0.devices[0].regions[0] = (0x1000, 0b111, []) }
    do {
      var device: VFIODevice? = try device()
      let region = try #require(try device?.region(0))
      let mapping = try RegionMapping(region.mappableAreas[0], of: region, device: try #require(device))
      device = nil
      #expect(kernel.state.withLock { $0.hostMappings } == 1)
      #expect(kernel.state.withLock { $0.files.values.contains(.device(0)) })
      #expect(mapping.hostAddress == 0x7000_0000)
    }
    #expect(kernel.complaints == [])
  }

  @Test("interrupts are counted, signalled, unmasked and disabled by type") func interrupts() throws {
    let device = try device()
    #expect(try device.interruptCount(.msix) == 8)
    // A device without PCI Express has no error interrupt: the kernel returns EINVAL.
    #expect(try device.interruptCount(.error) == 0)
    try device.signal(.msix, from: 2, to: [17, nil, 19])
    try device.unmaskINTx(by: 23)
    try device.disable(.msix)
    let sets = kernel.state.withLock { $0.interruptSets }
    #expect(sets.map(\.events) == [[17, -1, 19], [23], []])
    #expect(sets.map(\.index) == [2, 0, 2])
    #expect(sets.map(\.start) == [2, 0, 0])
    // The three calls set trigger eventfds, set an unmask eventfd, and remove the triggers (without data).
    #expect(sets.map(\.flags) == [0x24, 0x14, 0x21])
  }

  @Test("a bus reset is allowed only if all functions on the bus are ours or unused") func resets() throws {
    let device = try device()
    #expect(device.hasReset)
    try device.reset()
    let alone = try device.busReset()
    #expect(
      alone.isAllowed && alone.functions == [.init(owner: .device(1000), segment: 0, bus: 5, deviceFunction: 0)])
    // There are more functions than the first request has room for. They are not open, and only this process can
    // open them.
    kernel.state.withLock { $0.strangers = Array(repeating: 0, count: 99) }
    let reset = try device.busReset()
    #expect(reset.isAllowed && reset.functions.count == 100)
    #expect(reset.functions[7] == .init(owner: .unused, segment: 0, bus: 5, deviceFunction: 7))
    kernel.state.withLock { $0.strangers = [.max] }
    #expect(try device.busReset().functions.last?.owner == .other)
    #expect(try !device.busReset().isAllowed)
    #expect(throws: SystemError.self) { try device.resetBus() }
    kernel.state.withLock { $0.strangers = [] }
    try device.resetBus()
    #expect(kernel.state.withLock { $0.calls.last } == "HOT_RESET")
    #expect(kernel.state.withLock { $0.devices[0].resets } == 2)
    kernel.state.withLock { $0.devices[0].bus = nil }
    #expect(throws: SystemError("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", "/dev/vfio/devices/vfio0", code: ENODEV)) {
      try device.busReset()
    }
  }

  @Test("a BAR exported as a dma-buf can be mapped into an address space") func aBARAsAFileOfItsOwn() throws {
    kernel.state.withLock { $0.devices[0].regions[0] = (0x4000, 0b111, []) }
    do {
      let device = try device()
      let region = try device.region(0)
      let space = try IOAddressSpace(of: device.iommufd)
      let area = VFIORegion.Area(offset: 0x1000, size: 0x2000)
      // Linux 6.12 lacks the request.
      #expect(throws: SystemError.self) { try device.dmaBuffer(of: region, area) }
      kernel.state.withLock { $0.hasDMABuffers = true }
      do {
        let buffer = try device.dmaBuffer(of: region, area)
        try space.map(0xd000_0000, size: area.size, to: buffer, [.read, .write])
        #expect(throws: SystemError.self) { try space.map(0xd000_1000, size: area.size, to: buffer, [.read, .write]) }
      }
      // The mapping stays after the descriptor is closed.
      #expect(kernel.state.withLock { $0.files.count } == 2)
      #expect(kernel.state.withLock { $0.mapped[space.id]?[0xd000_0000]?.size } == 0x2000)
      try space.unmap(0xd000_0000, size: area.size)
      #expect(throws: SystemError.self) { try device.dmaBuffer(of: region, .init(offset: 0x3000, size: 0x2000)) }
    }
    #expect(kernel.complaints == [])
  }

  @Test("the ROM is read up to the end of its contents") func theROMIsReadWhole() throws {
    let content = (0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    kernel.state.withLock { state in
      state.devices[0].regions[6] = (8192, 0b001, [])
      state.devices[0].contents[6] = content
    }
    let device = try device()
    let region = try device.region(6)
    // The ROM region is larger than its contents. A read beyond the contents returns no bytes.
    #expect(device.contents(of: region, limit: 1 << 24) == content)
    #expect(device.contents(of: region, limit: 100) == Array(content[..<100]))
    #expect(device.contents(of: region, limit: -1) == [])
  }
}
