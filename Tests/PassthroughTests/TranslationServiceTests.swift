import Hardware
import PCI
import Testing

@testable import Passthrough

/// Checks how a guest sees ATS and PRI of a host's function.
@Suite struct TranslationServiceTests {
  @Test("the control registers of ATS and PRI are the guest's")
  func theGuestsRegistersAreItsOwn() {
    let all = HostConfigurationSpace(PageRequestChain.image, services: [.addressTranslation, .pageRequests])
    var space = all.given.space
    #expect(space.get(UInt32.self, 0x100) == 0x1401_0001 && space.get(UInt32.self, 0x180) == 0x1a01_0003)
    #expect(space.get(UInt32.self, 0x140) == 0x1801_000f && space.get(UInt32.self, 0x1a0) == 0x0001_0013)
    #expect(all.direct[0x140..<0x180].allSatisfy { $0 == 0 } && all.direct[0x1a0..<0x1b0].allSatisfy { $0 == 0 })
    #expect(
      space.get(UInt32.self, 0x144) == 0x0000_0025,
      "the capabilities of ATS are the device's, its control is the guest's")
    space.write(0x144, .doubleword, 0xffff_ffff)
    #expect(space.get(UInt32.self, 0x144) == 0x801f_0025)
    #expect(space.get(UInt32.self, 0x1a4) == 0x8100_0000, "stopped; a response needs its PASID")
    #expect(space.get(UInt32.self, 0x1a8) == 48 && space.get(UInt32.self, 0x1ac) == 0)
    space.write(0x1ac, .doubleword, 17)
    #expect(space.get(UInt32.self, 0x1ac) == 17)
    #expect(all.translationServices == [0x0f: 0x140, 0x13: 0x1a0])

    let onlyATS = HostConfigurationSpace(PageRequestChain.image, services: .addressTranslation)
    #expect(onlyATS.given.space.get(UInt32.self, 0x180) == 0x0001_0003, "the list ends before PRI")
    #expect(onlyATS.translationServices == [0x0f: 0x140] && onlyATS.hasPageRequests)
    let none = HostConfigurationSpace(PageRequestChain.image)
    #expect(none.given.space.get(UInt32.self, 0x100) == 0x1801_0001 && none.translationServices.isEmpty)
  }

  @Test("a capability that does not fit at the end of the space is left out")
  func aCapabilityAtTheSpacesEndIsLeftOut() {
    var image = PageRequestChain.image
    image.store(UInt32(0xff81_0003), at: 0x180)
    image.store(UInt32(0x0001_0013), at: 0xff8)
    let space = HostConfigurationSpace(image, services: [.addressTranslation, .pageRequests])
    #expect(space.translationServices == [0x0f: 0x140])
  }

  @Test("no write to ATS or PRI reaches the device")
  func nothingOfItReachesTheDevice() throws {
    try PageRequestChain.run { chain, kernel in
      kernel.state.withLock { $0.devices[0].writes = [] }
      let function = chain.models[0].function
      function.writeConfiguration(offset: 0x146, width: .word, value: 0x8000)
      function.writeConfiguration(offset: 0x1a4, width: .word, value: 0)
      #expect(chain.status() == 0x8100, "not enabled, nothing outstanding: stopped")
      function.writeConfiguration(offset: 0x1ac, width: .doubleword, value: 32)
      function.writeConfiguration(offset: 0x1a4, width: .word, value: 1)
      #expect(chain.status() == 0x8000)
      #expect(function.readConfiguration(offset: 0x146, width: .word) == 0x8000)
      #expect(function.readConfiguration(offset: 0x1ac, width: .doubleword) == 32)
      #expect(kernel.state.withLock { $0.devices[0].writes.isEmpty })
    }
  }
}
