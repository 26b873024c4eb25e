import FakeVFIO
import Glibc
import Hardware
import Testing
import VTd

@testable import Machine

/// Checks which capabilities of shared virtual memory a guest sees of a passed-through device: those that the host's
/// kernel, its IOMMU, the guest's unit and the user's options all permit.
@Suite struct SharedVirtualMemoryTests {
  /// The offsets of the capabilities that the guest finds.
  struct Found: Equatable {
    var ats: Int?
    var pri: Int?
    var pasid: Int?
    /// The PASID capability's second doubleword.
    var pasidRegisters: UInt64?
  }

  private static let hostCapabilities: UInt64 = 1 << 48 | 1 << 40 | 19 << 35 | 1 << 29 | 1 << 2

  /// Returns the kernel with one device with ATS at 0x140 and PRI at 0x1a0.
  private static func makeKernel(_ change: (inout FakeKernel.Device) -> Void) -> FakeKernel {
    FakeKernel.full(1) { _, device in
      device.capability = 47 << 16
      device.extendedCapability |= hostCapabilities
      device.pasidWidth = 20
      device.hardwareCapabilities = 1 << 1 | 1 << 2
      var image = FakeKernel.endpointImage
      image.store(UInt32(0x4), at: 0x18)
      image.store(UInt32(0x1), at: 0x20)
      image.store(UInt32(0x1801_000f), at: 0x140)
      image.store(UInt32(0x8000_0025), at: 0x144)
      image.store(UInt32(0x1a01_0003), at: 0x180)
      image.store(UInt32(0x0001_0013), at: 0x1a0)
      image.store(UInt32(48), at: 0x1a8)
      device.regions[7] = (4096, 0b011, [])
      device.contents[7] = image
      change(&device)
    }
  }

  private static func find(
    host: (inout FakeKernel.Device) -> Void = { _ in }, unit: (inout UnitOptions) -> Void = { _ in },
    options: (inout VFIOPCIOptions) -> Void = { _ in }
  ) throws -> (found: Found, notices: [String]) {
    let kernel = makeKernel(host)
    var iommu = PassthroughBoard.options
    iommu.unit.deviceIOTLB = true
    iommu.unit.pasidBits = 20
    iommu.unit.svm = true
    unit(&iommu.unit)
    let machine = try PassthroughBoard(kernel, [iommu, PassthroughBoard.device(0, "i0", options)])
    let address = try #require(machine.addresses[1])
    var found = Found()
    var offset = 0x100
    for _ in 0..<64 where offset != 0 {
      let header = machine.readConfiguration(address, offset)
      switch header & 0xffff {
      case 0x0f: found.ats = offset
      case 0x13: found.pri = offset
      case 0x1b:
        found.pasid = offset
        found.pasidRegisters = machine.readConfiguration(address, offset + 4)
      default: break
      }
      offset = Int(header >> 20)
    }
    let notices = machine.notices.all.map { "\($0.reason)" }
    machine.end()
    #expect(kernel.complaints == [])
    return (found, notices)
  }

  @Test("the guest sees PASID, ATS and page requests if the host and the unit have them")
  func everything() throws {
    let (found, notices) = try Self.find()
    #expect(found == Found(ats: 0x140, pri: 0x1a0, pasid: 0xff8, pasidRegisters: 0x1406))
    #expect(notices == [])
  }

  @Test("the width is the smaller of the kernel's and the unit's, and the features are the kernel's")
  func width() throws {
    #expect(try Self.find(unit: { $0.pasidBits = 12 }).found.pasidRegisters == 0x0c06)
    #expect(try Self.find(host: { $0.pasidWidth = 8 }).found.pasidRegisters == 0x0806)
    #expect(try Self.find(host: { $0.hardwareCapabilities = 1 << 2 }).found.pasidRegisters == 0x1404)
  }

  @Test("without PASIDs of the host or of the unit, the guest sees the rest")
  func noPASIDs() throws {
    let rest = Found(ats: 0x140, pri: 0x1a0)
    // A kernel that reports PASIDs but attaches none.
    let refused = try Self.find(host: { $0.failingPASIDs = [1: EOPNOTSUPP] })
    #expect(refused.found == rest && refused.notices.count == 1)
    #expect(refused.notices[0].hasPrefix("pasidsRefused"))
    // Linux 6.12 reports no width.
    #expect(try Self.find(host: { $0.pasidWidth = 0 }).found == rest)
    let (found, notices) = try Self.find(
      host: { $0.pasidWidth = 0 },
      unit: {
        $0.svm = false
        $0.pasidBits = 0
      })
    #expect(found == Found(ats: 0x140) && notices == [])
    let withoutPRI = Found(ats: 0x140, pasid: 0xff8, pasidRegisters: 0x1406)
    #expect(try Self.find(unit: { $0.svm = false }).found == withoutPRI)
    #expect(try Self.find(host: { $0.extendedCapability &= ~(1 << 29) }).found == withoutPRI)
  }

  @Test("without ATS, the guest sees no page requests either")
  func noATS() throws {
    let pasid = Found(pasid: 0xff8, pasidRegisters: 0x1406)
    #expect(try Self.find(host: { $0.hardwareCapabilities |= 1 << 3 }).found == pasid)
    #expect(try Self.find(host: { $0.extendedCapability &= ~(1 << 2) }).found == pasid)
    #expect(try Self.find(options: { $0.ats = false }).found == pasid)
    #expect(try Self.find(options: { $0.ats = true }).found.ats == 0x140)
  }

  @Test("ats=on refuses a device without ATS, and x-vpasid-cap-offset one with another capability there")
  func refusals() {
    func line(
      host: (inout FakeKernel.Device) -> Void = { _ in }, unit: (inout UnitOptions) -> Void = { _ in },
      options: (inout VFIOPCIOptions) -> Void = { $0.ats = true }
    ) -> String? {
      let error = #expect(throws: StartError.self) { try Self.find(host: host, unit: unit, options: options) }
      return error.map { String($0.description.dropFirst("-device vfio-pci: 0000:01:00.0: ".count)) }
    }
    #expect(
      line(host: { $0.hardwareCapabilities |= 1 << 3 }) == "ats=on: the host's kernel or IOMMU has no ATS for it")
    #expect(
      line(unit: {
        $0.svm = false
        $0.deviceIOTLB = false
      }) == "ats=on needs an intel-iommu with device-iotlb=on in front of it")
    #expect(
      line(host: { $0.contents[7]?.store(UInt32(0x1801_0019), at: 0x140) }) == "ats=on: it has no ATS capability")
    #expect(
      line(options: { $0.pasidOffset = 0x1a8 }) == "x-vpasid-cap-offset=0x1a8: another of its capabilities is there")
  }

  @Test("x-vpasid-cap-offset chooses the place, and without a place there is a notice")
  func place() throws {
    #expect(try Self.find(options: { $0.pasidOffset = 0x800 }).found.pasid == 0x800)
    let (found, notices) = try Self.find(host: { device in
      // Between and after the capabilities.
      for at in Array(0x148..<0x180) + Array(0x18c..<0x1a0) + Array(0x1b0..<4096) { device.contents[7]?[at] = 0xee }
    })
    #expect(found.pasid == nil && notices == ["noRoomForPASIDs"])
  }
}
