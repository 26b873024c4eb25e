import FakeVFIO
import Hardware
import PCI
import Testing

@testable import Passthrough

/// Checks the PASID capability that the guest sees of a host's function, which VFIO hides.
@Suite struct PASIDCapabilityTests {
  private static let image = FakeKernel.endpointImage
  private static let all = OfferedPASIDs(width: 20, features: [.executePermission, .privilegedMode])

  /// Returns the guest's list of extended capabilities, in its order.
  private func list(_ space: ConfigurationSpace) -> [(id: UInt16, offset: Int)] {
    var found: [(id: UInt16, offset: Int)] = []
    var offset = 0x100
    while offset != 0, found.count < 64 {
      let header = space.get(UInt32.self, offset)
      found.append((UInt16(truncatingIfNeeded: header), offset))
      offset = Int(header >> 20)
    }
    return found
  }

  @Test("the capability is at the end of the space, with the width and the features of the host")
  func endOfTheSpace() {
    let host = HostConfigurationSpace(Self.image, pasids: Self.all)
    var space = host.given.space
    #expect(host.pasidOffset == 0xff8 && host.pasidProblem == nil)
    #expect(list(space).map(\.offset) == [0x100, 0x180, 0xff8])
    #expect(space.get(UInt32.self, 0x180) == 0xff81_0003)
    #expect(space.get(UInt32.self, 0xff8) == 0x0001_001b)
    #expect(space.get(UInt32.self, 0xffc) == 0x0000_1406)
    space.write(0xffc, .doubleword, 0xffff_ffff)
    #expect(space.get(UInt32.self, 0xffc) == 0x0007_1406, "enable, execute and privileged are writable")
    // The capability before it has all bytes up to the end, but for these.
    #expect(host.direct[0xff8...].allSatisfy { $0 == 0 } && host.direct[0xff7] == 0xff)

    var plain = HostConfigurationSpace(Self.image, pasids: OfferedPASIDs(width: 8)).given.space
    plain.write(0xffc, .doubleword, 0xffff_ffff)
    #expect(plain.get(UInt32.self, 0xffc) == 0x0001_0800)
    #expect(OfferedPASIDs(width: 0) == nil && OfferedPASIDs(width: 31)?.width == 20)
    let none = HostConfigurationSpace(Self.image)
    #expect(list(none.given.space).map(\.offset) == [0x100, 0x180] && none.pasidOffset == nil)
    #expect(none.direct[0xfff] == 0xff)
  }

  /// Linux enables PASIDs only of a function that supports end-end TLP prefixes.
  @Test("Device Capabilities 2 announces the prefixes that carry PASIDs")
  func prefixes() {
    // The PCI Express capability is at 0x80, and Device Capabilities 2 at 0xa4.
    let without = HostConfigurationSpace(Self.image)
    #expect(without.direct[0xa4..<0xac].allSatisfy { $0 == 0xff })
    let host = HostConfigurationSpace(Self.image, pasids: Self.all)
    #expect(host.given.space.get(UInt8.self, 0xa6) == 0x70 && host.direct[0xa6] == 0x0f)
    #expect(host.direct[0xa5] == 0xff && host.direct[0xa7] == 0xff)
    var image = Self.image
    image.store(UInt32(0x00f0_0000), at: 0xa4)
    let own = HostConfigurationSpace(image, pasids: Self.all)
    #expect(own.direct[0xa6] == 0xff, "the device says it itself")
  }

  @Test("the capability avoids bytes that are not zero, and all capabilities of the host")
  func room() {
    var image = Self.image
    image[0xffe] = 1
    #expect(HostConfigurationSpace(image, pasids: Self.all).pasidOffset == 0xff4)
    for at in 0x200..<4096 { image[at] = 0xa5 }
    // The serial number at 0x180 has 12 bytes.
    #expect(HostConfigurationSpace(image, pasids: Self.all).pasidOffset == 0x1f8)
    for at in 0x18c..<0x200 { image[at] = 0xa5 }
    // SR-IOV is hidden, and its bytes read as zero up to 0x180. The errors' capability ends at 0x140.
    let full = HostConfigurationSpace(image, pasids: Self.all)
    #expect(full.pasidOffset == nil && full.pasidProblem == .noRoom)
    #expect(list(full.given.space).map(\.offset) == [0x100, 0x180])
    image[0x194] = 0
    for at in 0x194..<0x19c { image[at] = 0 }
    #expect(HostConfigurationSpace(image, pasids: Self.all).pasidOffset == 0x194)
  }

  @Test("the user's offset is taken, unless a capability that the guest sees is there")
  func chosenOffset() {
    func space(_ offset: Int, _ image: [UInt8] = Self.image) -> HostConfigurationSpace {
      HostConfigurationSpace(image, pasids: OfferedPASIDs(width: 16, offset: offset))
    }
    for offset in [0x148, 0x18c, 0x200, 0xff8] {
      #expect(space(offset).pasidOffset == offset)
      #expect(list(space(offset).given.space).map(\.offset) == [0x100, 0x180, offset])
    }
    for offset in [0x100, 0x104, 0x13c, 0x17c, 0x180, 0x188] {
      #expect(space(offset).pasidProblem == .taken(offset), "\(offset)")
      #expect(list(space(offset).given.space).map(\.offset) == [0x100, 0x180])
    }
    // The list begins with the capability itself if there is nothing else at 0x100.
    var image = Self.image
    image.store(UInt32(0x1401_0019), at: 0x100)
    #expect(list(space(0x100, image).given.space).map(\.offset) == [0x100, 0x180])
    #expect(list(space(0x100, image).given.space).map(\.id) == [0x1b, 0x03])
    image.store(UInt32(0), at: 0x100)
    #expect(list(space(0xff8, image).given.space).map(\.id) == [0xffff, 0x1b])
    #expect(list(space(0x100, image).given.space).map(\.id) == [0x1b])
  }

  @Test("without extended configuration space or Device Capabilities 2, there is no capability")
  func impossible() {
    for offset in [nil, 0x200] {
      let pasids = OfferedPASIDs(width: 20, offset: offset)
      let short = HostConfigurationSpace(Array(Self.image[..<256]), pasids: pasids)
      #expect(short.pasidOffset == nil && short.pasidProblem == .noRoom)
      #expect(short.given.space.get(UInt32.self, 0x100) == 0)
      var image = Self.image
      image.store(UInt16(0x0001), at: 0x82)
      let old = HostConfigurationSpace(image, pasids: pasids)
      #expect(old.pasidOffset == nil && old.pasidProblem == .noRoom)
    }
  }

  @Test("PASID, ATS and page requests are shown together")
  func together() {
    let host = HostConfigurationSpace(
      PageRequestChain.image, services: [.addressTranslation, .pageRequests], pasids: Self.all)
    #expect(list(host.given.space).map(\.id) == [0x01, 0x0f, 0x03, 0x13, 0x1b])
  }
}
