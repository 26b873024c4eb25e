import CLinux
import FakeVFIO
import Glibc
import Linux
import Testing

@testable import VFIO

/// Address spaces and page tables against the fake kernel.
@Suite struct AddressSpaceTests {
  private let kernel = FakeKernel(devices: [
    .init(path: "/dev/vfio/devices/vfio0"), .init(path: "/dev/vfio/devices/vfio1"),
    .init(path: "/dev/vfio/devices/vfio2", iommu: 1, extendedCapability: 1 << 43 | 1 << 46 | 1 << 47 | 1 << 26),
  ])

  private func device(_ number: Int, of iommufd: IOMMUFD) throws(SystemError) -> VFIODevice {
    try VFIODevice(file: KernelFile(opening: "/dev/vfio/devices/vfio\(number)", calls: kernel), to: iommufd)
  }

  @Test("a mapping has its access rights, and unmapping an unmapped range is an error")
  func mappingsCarryTheirRights() throws {
    do {
      let space = try IOAddressSpace(of: IOMMUFD(calls: kernel))
      try space.map(0x1_0000_0000, size: 0x20_0000, to: 0x7000_0000, [.read, .write])
      try space.map(0, size: 0x1000, to: 0x7100_0000, .read)
      let mapped = kernel.state.withLock { $0.mapped[space.id] ?? [:] }
      #expect(mapped[0x1_0000_0000]?.flags == 0b111)
      #expect(mapped[0]?.flags == 0b101)
      try space.unmap(0, size: 0x1000)
      #expect(kernel.state.withLock { $0.mapped[space.id]?.count } == 1)
      #expect(throws: SystemError.self) { try space.unmap(0, size: 0x1000) }
      #expect(try space.allowedRanges() == [0...0xfedf_ffff, 0xfef0_0000...(1 << 48 - 1)])
    }
    #expect(kernel.complaints == [])
  }

  @Test("the hardware information has the capabilities of each device's IOMMU") func whatTheHostsIOMMUIs() throws {
    let iommufd = try IOMMUFD(calls: kernel)
    let first = try device(0, of: iommufd)
    let vtd = try #require(try iommufd.hardwareInformation(device: first.id).vtd)
    #expect(vtd.offersNesting && vtd.offersSnoopControl && vtd.hasReadOnlyErratum && vtd.addressWidth == 48)
    let third = try device(2, of: iommufd)
    #expect(try iommufd.hardwareInformation(device: third.id).vtd?.offersSnoopControl == false)
    kernel.state.withLock { $0.devices[0].isVTd = false }
    #expect(try iommufd.hardwareInformation(device: first.id).vtd == nil)
  }

  @Test("devices share a parent if their IOMMUs are compatible")
  func devicesShareAParentWhereTheirIOMMUsAreAlike() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let space = try IOAddressSpace(of: iommufd)
      try space.map(0, size: 0x1000, to: 0x7000_0000, [.read, .write])
      let devices = try (0..<3).map { try device($0, of: iommufd) }
      let parent = try HardwarePageTable(parentOver: space, for: devices[0].id)
      try devices[0].attach(to: parent)
      try devices[1].attach(to: parent)
      let refusal = #expect(throws: SystemError.self) { try devices[2].attach(to: parent) }
      #expect(refusal?.code == EINVAL)
      let other = try HardwarePageTable(parentOver: space, for: devices[2].id)
      try devices[2].attach(to: other)
      // Because of an erratum of some IOMMUs, Linux 6.12 refuses read-only mappings under every nesting parent.
      #expect(throws: SystemError.self) { try space.map(0x1000, size: 0x1000, to: 0x7100_0000, .read) }
      for device in devices { try device.detach() }
    }
    #expect(kernel.complaints == [])
  }

  @Test("a nested table keeps its parent") func aNestedTableHoldsItsParent() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let device = try device(0, of: iommufd)
      var nested: HardwarePageTable?
      do {
        let space = try IOAddressSpace(of: iommufd)
        let parent = try HardwarePageTable(parentOver: space, for: device.id)
        nested = try HardwarePageTable(
          nesting: .init(root: 0x1234_5000, addressWidth: 48, writeProtectEnable: true), on: parent, for: device.id)
      }
      // Only the nested table refers to the parent and the address space now.
      #expect(kernel.state.withLock { $0.objects.count } == 3)
      try device.attach(to: try #require(nested))
      try nested?.invalidate([.init(address: 0x4000, pages: 2, leafOnly: true), .all])
      try nested?.invalidate([])
      let invalidations = kernel.state.withLock { $0.invalidations }
      #expect(invalidations.count == 1)
      #expect(invalidations.first?.entries.map(\.addr) == [0x4000, 0])
      #expect(invalidations.first?.entries.map(\.npages) == [2, .max])
      #expect(invalidations.first?.entries.map(\.flags) == [1, 0])
      try device.detach()
      nested = nil
    }
    #expect(kernel.complaints == [])
  }

  /// Sets a device up as a machine does. In each round, another call fails. Nothing may leak, and nothing may be freed
  /// out of order.
  @Test("setting a device up leaks nothing, whichever call fails") func nothingLeaksWhicheverCallFails() throws {
    for calls in 0..<64 {
      let kernel = FakeKernel()
      kernel.state.withLock { $0.callsBeforeFailure = calls }
      var failure: SystemError?
      do throws(SystemError) { try bringUp(kernel) } catch { failure = error }
      #expect(kernel.complaints == [], "call \(calls)")
      guard failure != nil else {
        // No call was left to fail.
        #expect(calls >= 13)
        return
      }
      #expect(failure?.code == EIO)
    }
    Issue.record("the setup did not end within 64 calls")
  }

  private func bringUp(_ kernel: FakeKernel) throws(SystemError) {
    let iommufd = try IOMMUFD(calls: kernel)
    let device = try VFIODevice(file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: iommufd)
    _ = try iommufd.hardwareInformation(device: device.id)
    let space = try IOAddressSpace(of: iommufd)
    try space.map(0, size: 0x1000, to: 0x7000_0000, [.read, .write])
    let parent = try HardwarePageTable(parentOver: space, for: device.id)
    try device.attach(to: parent)
    let faults = try FaultQueue(of: iommufd)
    let nested = try HardwarePageTable(
      nesting: .init(root: 0x5000, addressWidth: 48), on: parent, for: device.id, faults: faults)
    try device.attach(to: nested)
    try nested.invalidate([.all])
    try device.attach(to: parent)
    try device.detach()
  }

  /// Attaching another table, or detaching, releases the former table.
  @Test("replacing a device's table 200 times leaks no table") func attachReplaceDetachTwoHundredTimes() throws {
    do {
      let iommufd = try IOMMUFD(calls: kernel)
      let device = try device(0, of: iommufd)
      let space = try IOAddressSpace(of: iommufd)
      let parent = try HardwarePageTable(parentOver: space, for: device.id)
      for round in 0..<200 {
        do {
          let next = try HardwarePageTable(
            nesting: .init(root: UInt64(round) << 12, addressWidth: 48), on: parent, for: device.id)
          try device.attach(to: next)
        }
        // The former table is gone, because the device had the only reference to it.
        #expect(kernel.state.withLock { $0.objects.count } == 3)
        if round % 3 == 0 {
          try device.attach(to: parent)
          #expect(kernel.state.withLock { $0.objects.count } == 2)
        }
      }
      try device.detach()
    }
    #expect(kernel.complaints == [])
  }
}
