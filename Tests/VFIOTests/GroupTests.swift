import FakeVFIO
import Glibc
import Linux
import Testing

@testable import VFIO

/// Tests that the fake kernel handles the functions of one IOMMU group as Linux does.
@Suite struct GroupTests {
  private let kernel = FakeKernel(
    devices: (0..<3).map { number in
      var device = FakeKernel.Device(path: "/dev/vfio/devices/vfio\(number)")
      if number < 2 { device.group = 100 }
      return device
    })

  private func device(_ number: Int, _ iommufd: IOMMUFD) throws(SystemError) -> VFIODevice {
    try VFIODevice(file: KernelFile(opening: "/dev/vfio/devices/vfio\(number)", calls: kernel), to: iommufd)
  }

  @Test func `a group has one page table, so attaching one function moves the other`() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let devices = try (0..<3).map { try device($0, iommufd) }
      let space = try IOAddressSpace(of: iommufd)
      let parent = try HardwarePageTable(parentOver: space, for: devices[0].id)
      for device in devices { try device.attach(to: parent) }
      let table = try HardwarePageTable(
        nesting: .init(root: 0x5000, addressWidth: 48), on: parent, for: devices[0].id)
      try devices[0].attach(to: table)
      #expect(kernel.translation(1) == .nested(on: parent.id, root: 0x5000), "moved with its group")
      #expect(kernel.translation(2) == .parent(of: space.id, iommu: 0))
      try devices[1].attach(to: parent)
      #expect(kernel.translation(0) == .parent(of: space.id, iommu: 0))
    }
    #expect(kernel.complaints == [])
  }

  @Test func `a detached function keeps its group's table until the last function is detached`() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let devices = try (0..<2).map { try device($0, iommufd) }
      let spaces = try (0..<2).map { _ in try IOAddressSpace(of: iommufd) }
      for device in devices { try device.attach(to: spaces[0]) }
      try devices[0].detach()
      #expect(kernel.translation(0) == .addressSpace)
      let error = #expect(throws: SystemError.self) { try devices[0].attach(to: spaces[1]) }
      #expect(error?.code == EINVAL)
      try devices[1].detach()
      #expect(kernel.translation(0) == nil)
      try devices[0].attach(to: spaces[1])
      #expect(kernel.translation(1) == .addressSpace)
    }
    #expect(kernel.complaints == [])
  }

  @Test func `a group belongs to one iommufd`() throws {
    do {
      let first = try IOMMUFD(calls: kernel)
      let second = try IOMMUFD(calls: kernel)
      var device: VFIODevice? = try self.device(0, first)
      let error = #expect(throws: SystemError.self) { try self.device(1, second) }
      #expect(error?.code == EPERM)
      _ = try self.device(2, second)
      device = nil
      _ = device
      _ = try self.device(1, second)
    }
    #expect(kernel.complaints == [])
  }
}
