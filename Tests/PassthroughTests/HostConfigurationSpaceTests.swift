import FakeVFIO
import Hardware
import PCI
import TestSupport
import Testing

@testable import Passthrough

/// Checks which parts of a host function's configuration space the guest sees.
@Suite struct HostConfigurationSpaceTests {
  private static let image = FakeKernel.endpointImage

  /// Returns the offsets of the capabilities by identifier, or nil for a list without an end.
  private func list(_ space: ConfigurationSpace) -> [UInt8: Int]? {
    var found: [UInt8: Int] = [:]
    var offset = Int(space.get(UInt8.self, 0x34))
    // The space has room for 48 capabilities of four bytes.
    for _ in 0..<48 where offset != 0 {
      found[space.get(UInt8.self, offset)] = offset
      offset = Int(space.get(UInt8.self, offset + 1))
    }
    return offset == 0 ? found : nil
  }

  /// Returns the same for the extended capabilities; the space has room for 960.
  private func extendedList(_ space: ConfigurationSpace) -> [UInt16: Int]? {
    var found: [UInt16: Int] = [:]
    var offset = 0x100
    for _ in 0..<960 where offset != 0 {
      let header = space.get(UInt32.self, offset)
      found[UInt16(truncatingIfNeeded: header)] = offset
      offset = Int(header >> 20)
    }
    return offset == 0 ? found : nil
  }

  @Test("capabilities keep their offsets")
  func capabilitiesStayWhereTheyAre() throws {
    let space = HostConfigurationSpace(Self.image)
    #expect(list(space.given.space) == [0x01: 0x40, 0x11: 0x70, 0x10: 0x80, 0x09: 0xc0])
    #expect(space.given.msixOffset == 0x70 && space.given.expressOffset == 0x80)
    let layout = try #require(space.msix)
    #expect(layout.vectorCount == 4 && layout.bar == 2 && layout.tableOffset == 0x2000)
    #expect(layout.pendingBar == 2 && layout.pendingOffset == 0x3000)
    // A function with MSI-X offers no MSI.
    #expect(space.msiVectorCount == 0 && space.given.msiOffset == nil)
    #expect(space.interruptPin == 1)
  }

  @Test("the guest sees an emulated port type, function-level reset and link")
  func portTypeAndLinkAreEmulated() {
    let space = HostConfigurationSpace(Self.image).given.space
    #expect(space.get(UInt16.self, 0x82) == 0x92, "version 2, an endpoint of the root complex")
    #expect(space.get(UInt8.self, 0x87) & 0x10 != 0, "FLR, which VFIO emulates by any reset that the device has")
    #expect(!HostConfigurationSpace(Self.image).hasFunctionLevelReset)
    let without = HostConfigurationSpace(Self.image, offersReset: false)
    #expect(without.given.space.get(UInt8.self, 0x87) & 0x10 == 0 && without.direct[0x87] & 0x10 == 0)
    var advanced = Self.image
    advanced[0x41] = 0x60
    advanced.store(UInt32(0x0306_5013), at: 0x60)
    #expect(HostConfigurationSpace(advanced).hasFunctionLevelReset)
    #expect(space.get(UInt32.self, 0x8c) == 0, "there is no link")
    let below = HostConfigurationSpace(Self.image, type: .endpoint)
    #expect(below.given.space.get(UInt16.self, 0x82) == 0x02)
    #expect(below.given.space.get(UInt32.self, 0x8c) == 0x0040_0011 && below.given.space.get(UInt16.self, 0x92) == 0x11)
    #expect(below.direct[0x8c..<0x94].allSatisfy { $0 == 0 }, "the link is the guest's")
  }

  @Test("power management is emulated and starts in D0")
  func powerManagementIsEmulated() {
    let space = HostConfigurationSpace(Self.image)
    var own = space.given.space
    #expect(space.given.powerManagementOffset == 0x40 && space.isResetByPowerStates)
    #expect(own.get(UInt16.self, 0x44) == 0, "D0 regardless of the host's state; No_Soft_Reset is the host's")
    own.write(0x44, .word, 0xffff)
    #expect(own.get(UInt16.self, 0x44) == 3)
    var kept = Self.image
    kept[0x44] = 0x0b
    #expect(HostConfigurationSpace(kept).given.space.get(UInt16.self, 0x44) == 8)
    #expect(!HostConfigurationSpace(kept).isResetByPowerStates)
    #expect(own.get(UInt16.self, 0x42) & 0xf800 == 0, "no PME")
    #expect(space.direct[0x44..<0x46].allSatisfy { $0 == 0 })
  }

  @Test("writes to device control and vendor data reach the device; those to BARs and MSI-X do not")
  func whatReachesTheDevice() {
    let direct = HostConfigurationSpace(Self.image).direct
    #expect(direct[0x00..<0x06].allSatisfy { $0 == 0 }, "identity and command")
    #expect(direct[0x10..<0x40].allSatisfy { $0 == 0 }, "BARs, ROM, pointers, interrupt")
    #expect(direct[0x70..<0x7c].allSatisfy { $0 == 0 }, "MSI-X")
    #expect(direct[0x88] == 0xff && direct[0x89] == 0x7f, "device control, less the reset")
    #expect(direct[0xc2..<0xc8].allSatisfy { $0 == 0xff } && direct[0xc8] == 0, "vendor data, for its stated length")
    #expect(direct[0x104..<0x140].allSatisfy { $0 == 0xff } && direct[0x140..<0x180].allSatisfy { $0 == 0 })
    #expect(direct[0x184] == 0xff)
  }

  @Test("extended capabilities that cannot be passed are left out")
  func extendedCapabilitiesThatCannotBePassedAreLeftOut() {
    let space = HostConfigurationSpace(Self.image).given.space
    #expect(space.get(UInt32.self, 0x100) == 0x1801_0001)
    #expect(space.get(UInt32.self, 0x140) == 0)
    #expect(space.get(UInt32.self, 0x180) == 0x0001_0003)
    var image = Self.image
    image.store(UInt32(0x1401_0019), at: 0x100)
    let without = HostConfigurationSpace(image).given.space
    #expect(without.get(UInt32.self, 0x100) == 0x1800_ffff, "the list always begins at 0x100")
  }

  /// MSI keeps the host's offset if the host's capability has the layout of the emulated one. Otherwise it takes a gap
  /// that is large enough.
  @Test("MSI is placed at the host's offset or in a gap", arguments: [0x0180, 0x0080, 0x0000] as [UInt16])
  func msi(_ control: UInt16) {
    var image = Self.image
    image[0x41] = 0x50
    image.store(UInt8(0x80), at: 0x51)
    image.store(control | 0x4, at: 0x52)
    for at in 0x70..<0x7c { image[at] = 0 }
    let space = HostConfigurationSpace(image)
    #expect(space.msix == nil && space.msiVectorCount == 4 && space.given.msiOffset == 0x50)
    #expect(list(space.given.space)?[5] == 0x50)
    // Data directly after the capability leaves no room to extend it.
    image.store(UInt32(0xffff_ffff), at: 0x60)
    let crowded = HostConfigurationSpace(image)
    if control == 0x180 {
      // The capability may use its own bytes, whatever they hold.
      #expect(crowded.given.msiOffset == 0x50)
    } else {
      #expect(crowded.given.msiOffset == 0x48)
    }
  }

  /// The control register of power management may be zero, but it is not a gap. If MSI overlapped it, the guest's
  /// writes to MSI would change power states.
  @Test("MSI never overlaps power management")
  func msiDoesNotOverlapPowerManagement() {
    var image = Self.image
    image[0x41] = 0x60
    image.store(UInt32(0), at: 0x44)
    image.store(UInt32(0), at: 0x50)
    // MSI has neither 64-bit addresses nor masks, and no room after it for them.
    image.store(UInt32(0x0004_8005), at: 0x60)
    image.store(UInt32(0xffff_ffff), at: 0x6c)
    for at in 0x70..<0x7c { image[at] = 0 }
    let space = HostConfigurationSpace(image)
    #expect(space.given.powerManagementOffset == 0x40 && space.msiVectorCount == 4)
    #expect(space.given.msiOffset == 0x48)
  }

  @Test("any image yields capability lists that end")
  func anyImageYieldsListsThatEnd() {
    let seed = UInt64.random(in: 0 ... .max)
    var random = SeededGenerator(seed: seed)
    for _ in 0..<500 {
      let image = (0..<4096).map { _ in UInt8.random(in: 0...255, using: &random) }
      for size in [256, 4096] {
        let space = HostConfigurationSpace(
          Array(image[..<size]), services: [.addressTranslation, .pageRequests], pasids: OfferedPASIDs(width: 20)
        ).given.space
        #expect(list(space) != nil && extendedList(space) != nil, "seed \(seed)")
      }
    }
    // Circular lists.
    var round = Self.image
    round[0xc1] = 0x40
    round.store(UInt32(0x1001_0003), at: 0x180)
    let space = HostConfigurationSpace(round).given.space
    #expect(list(space) != nil && extendedList(space) != nil)
  }
}
