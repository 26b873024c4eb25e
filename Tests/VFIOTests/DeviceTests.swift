import CLinux
import FakeVFIO
import Glibc
import Linux
import Testing

@testable import VFIO

/// Regions, interrupts and resets of a device, against a kernel of our own.
@Suite struct DeviceTests {
  private let kernel = FakeKernel()

  private func device() throws(SystemError) -> VFIODevice {
    try VFIODevice(
      file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: IOMMUFD(calls: kernel))
  }

  @Test func aDeviceThatIsNotThere() {
    let error = #expect(throws: SystemError.self) {
      try KernelFile(opening: "/dev/vfio/devices/vfio9", calls: kernel)
    }
    #expect(error == SystemError("open", "/dev/vfio/devices/vfio9", code: ENOENT))
    #expect(kernel.leftovers == [])
  }

  @Test func regions() throws {
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

  @Test func accessesStayWithinTheRegion() throws {
    kernel.state.withLock { $0.devices[0].regions[7] = (256, 0b011, []) }
    let device = try device()
    let region = try device.region(7)
    // The kernel of the test answers with the offset's low byte, and counts on.
    #expect(device.read(region, offset: 0x10, width: 4) == 0x1312_1110)
    #expect(device.read(region, offset: 0xff, width: 1) == 0xff)
    #expect(device.write(region, offset: 4, width: 2, value: 7))
    for (offset, width) in [(UInt64(256), 1), (255, 2), (.max, 8), (0, 0), (0, 9)] {
      #expect(device.read(region, offset: offset, width: width) == nil)
      #expect(!device.write(region, offset: offset, width: width, value: 0))
    }
  }

  @Test func aMappingKeepsTheDeviceOpen() throws {
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
    #expect(kernel.leftovers == [])
  }

  @Test func interrupts() throws {
    let device = try device()
    #expect(try device.interruptCount(.msix) == 8)
    // Without PCI Express there is no error interrupt: the kernel says EINVAL.
    #expect(try device.interruptCount(.error) == 0)
    try device.signal(.msix, from: 2, to: [17, nil, 19])
    try device.unmaskINTx(by: 23)
    try device.disable(.msix)
    let sets = kernel.state.withLock { $0.interruptSets }
    #expect(sets.map(\.events) == [[17, -1, 19], [23], []])
    #expect(sets.map(\.index) == [2, 0, 2])
    #expect(sets.map(\.start) == [2, 0, 0])
    // Eventfds trigger; an eventfd unmasks; nothing triggers.
    #expect(sets.map(\.flags) == [0x24, 0x14, 0x21])
  }

  @Test func resets() throws {
    let device = try device()
    #expect(device.hasReset)
    try device.reset()
    #expect(try device.busReset().functions.count == 2)
    // More than were asked for at first.
    kernel.state.withLock { $0.busResetCount = 100 }
    let reset = try device.busReset()
    #expect(reset.isAllowed && reset.functions.count == 100)
    #expect(reset.functions[7] == .init(segment: 0, bus: 5, deviceFunction: 7))
    try device.resetBus()
    #expect(kernel.state.withLock { $0.calls.last } == "HOT_RESET")
  }
}
