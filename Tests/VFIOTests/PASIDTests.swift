import CLinux
import FakeVFIO
import Glibc
import Linux
import Testing

@testable import VFIO

/// PASIDs of a device, against the fake kernel.
@Suite struct PASIDTests {
  private let kernel = FakeKernel()

  init() { kernel.state.withLock { $0.devices[0].pasidWidth = 20 } }

  private func device(of iommufd: IOMMUFD) throws(SystemError) -> VFIODevice {
    try VFIODevice(file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: iommufd)
  }

  private func table(_ root: UInt64, on parent: HardwarePageTable, _ device: VFIODevice) throws -> HardwarePageTable {
    try HardwarePageTable(nesting: .init(root: root, addressWidth: 48), on: parent, for: device.id)
  }

  private func root(_ pasid: UInt32) -> UInt64? {
    if case .nested(_, let root) = kernel.attached(0, pasid: pasid) { root } else { nil }
  }

  @Test("each PASID has its own table, which lives until it is replaced or detached")
  func attachReplaceDetach() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let device = try device(of: iommufd)
      #expect(try iommufd.hardwareInformation(device: device.id).pasidWidth == 20)
      let parent = try HardwarePageTable(
        parentOver: IOAddressSpace(of: iommufd), for: device.id, allowsPASIDs: true)
      try device.attach(to: parent)
      for pasid: UInt32 in [1, 7, 0xf_ffff] {
        try device.attach(to: table(UInt64(pasid) << 12, on: parent, device), pasid: pasid)
      }
      try device.attach(to: parent, pasid: 8)
      #expect(root(1) == 0x1000 && root(7) == 0x7000 && root(0xf_ffff) == 0xffff_f000)
      #expect(kernel.attached(0) == kernel.attached(0, pasid: 8))
      try device.attach(to: table(0x5000, on: parent, device), pasid: 7)
      #expect(root(7) == 0x5000 && kernel.nestedRoots == [0x1000, 0x5000, 0xffff_f000])
      try device.detach(pasid: 1)
      try device.detach(pasid: 1)
      try device.detach(pasid: 99)
      #expect(kernel.pasids(of: 0) == [7, 8, 0xf_ffff] && kernel.nestedRoots == [0x5000, 0xffff_f000])
      #expect(kernel.attached(0) != nil, "requests without PASID keep their table")
      try device.detach()
      #expect(kernel.attached(0) == nil && kernel.pasids(of: 0) == [7, 8, 0xf_ffff])
      try device.detachAll()
      #expect(kernel.pasids(of: 0) == [] && kernel.nestedRoots == [])
    }
    #expect(kernel.complaints == [])
  }

  @Test("the end of a device detaches its PASIDs, then its requests without PASID, although its file stays open")
  func endOfADevice() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let file = try KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel)
      do {
        let device = try VFIODevice(file: file, to: iommufd)
        let parent = try HardwarePageTable(
          parentOver: IOAddressSpace(of: iommufd), for: device.id, allowsPASIDs: true)
        try device.attach(to: parent)
        for pasid: UInt32 in [3, 2] { try device.attach(to: parent, pasid: pasid) }
      }
      let detached = kernel.state.withLock { $0.steps.prefix(3) }
      #expect(detached == [.detachPASID(2, device: 0), .detachPASID(3, device: 0), .detach(device: 0)])
      #expect(kernel.state.withLock { $0.objects.isEmpty })
    }
    #expect(kernel.complaints == [])
  }

  @Test("after a failed attachment the PASID keeps its former table")
  func failedAttachment() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let device = try device(of: iommufd)
      let parent = try HardwarePageTable(
        parentOver: IOAddressSpace(of: iommufd), for: device.id, allowsPASIDs: true)
      try device.attach(to: parent)
      try device.attach(to: table(0x1000, on: parent, device), pasid: 1)
      kernel.state.withLock { $0.devices[0].failingPASIDs = [1: EBUSY, 2: ENOMEM] }
      #expect(throws: SystemError.self) { try device.attach(to: table(0x2000, on: parent, device), pasid: 1) }
      #expect(throws: SystemError.self) { try device.attach(to: table(0x3000, on: parent, device), pasid: 2) }
      #expect(root(1) == 0x1000 && kernel.pasids(of: 0) == [1] && kernel.nestedRoots == [0x1000])
    }
    #expect(kernel.complaints == [])
  }

  @Test("the kernel attaches a PASID only if each table of the device allows PASIDs, and the PASID fits")
  func rules() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let device = try device(of: iommufd)
      let space = try IOAddressSpace(of: iommufd)
      let parent = try HardwarePageTable(parentOver: space, for: device.id, allowsPASIDs: true)
      let plain = try HardwarePageTable(parentOver: space, for: device.id)
      #expect(try table(0, on: parent, device).allowsPASIDs && !table(0, on: plain, device).allowsPASIDs)
      func refuses(_ body: () throws -> Void) { #expect(throws: SystemError.self, performing: body) }
      refuses { try device.attach(to: plain, pasid: 1) }
      refuses { try device.attach(to: table(0x1000, on: plain, device), pasid: 1) }
      refuses { try device.attach(to: space, pasid: 1) }
      try device.attach(to: plain)
      refuses { try device.attach(to: parent, pasid: 1) }
      try device.attach(to: parent)
      refuses { try device.attach(to: parent, pasid: 1 << 20) }
      try device.attach(to: parent, pasid: 1)
      refuses { try device.attach(to: plain) }
      refuses { try device.attach(to: space) }
      try device.detach(pasid: 1)
      try device.attach(to: space)
    }
    #expect(kernel.complaints == [])
  }

  @Test("a kernel before 6.15 refuses tables for PASIDs and their attachment, and attaches requests without PASID")
  func olderKernel() throws {
    kernel.state.withLock { $0.attachesPASIDs = false }
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let device = try device(of: iommufd)
      let space = try IOAddressSpace(of: iommufd)
      let refusal = #expect(throws: SystemError.self) {
        try HardwarePageTable(parentOver: space, for: device.id, allowsPASIDs: true)
      }
      #expect(refusal?.code == EOPNOTSUPP)
      let parent = try HardwarePageTable(parentOver: space, for: device.id)
      try device.attach(to: parent)
      #expect(throws: SystemError.self) { try device.attach(to: parent, pasid: 1) }
      try device.attach(to: table(0x1000, on: parent, device))
      try device.detach()
    }
    #expect(kernel.complaints == [])
  }
}
