import Hardware
import Testing

@testable import PCI

@Suite("extended capabilities of a function")
struct ExtendedCapabilityTests {
  static let all: [ExtendedCapability] = [
    .addressTranslation(invalidateQueueDepth: 32), .pageRequest(capacity: 32), .processAddressSpace(width: 20),
    .accessControl([.sourceValidation, .requestRedirect, .completionRedirect, .upstreamForwarding]),
  ]

  func make(_ capabilities: [ExtendedCapability] = all) -> (Function, RecordingModel) {
    var description = FunctionDescription.plain
    description.expressType = .rootComplexIntegratedEndpoint
    description.extendedCapabilities = capabilities
    return TestBoard().make(description)
  }

  @Test("extended capabilities from 0x100 on have their reset values")
  func image() {
    let (function, _) = make()
    let words: [UInt32] = [
      0x1081_000f, 0x0000_0020,  // ATS: depth 32 encoded as 0, page-aligned requests
      0x1181_0013, 0x8100_0000, 0x0000_0020, 0x0000_0000,  // PRI: stopped, PASID required in responses; capacity 32
      0x1201_001b, 0x0000_1406,  // PASID: 20 bits, execute and privileged
      0x0001_000d, 0x0000_001d,  // ACS
    ]
    for (index, word) in words.enumerated() { #expect(function.read32(0x100 + 4 * index) == word, "word \(index)") }
    #expect(function.read32(0x100 + 4 * words.count) == 0)
    #expect(function.extendedCapabilityOffsets == [0x100, 0x108, 0x118, 0x120])
    #expect(function.extendedCapability(PageRequestControl.id) == 0x108)
    #expect(function.extendedCapability(0x0b) == nil)
  }

  @Test("software can change the control fields and nothing else")
  func masks() {
    let (function, model) = make()
    for offset in stride(from: 0x100, to: 0x128, by: 4) { function.write32(offset, .max) }
    let words: [UInt32] = [
      0x1081_000f, 0x801f_0020, 0x1181_0013, 0x8100_0001, 0x0000_0020, 0xffff_ffff, 0x1201_001b, 0x0007_1406,
      0x0001_000d, 0x001d_001d,
    ]
    for (index, word) in words.enumerated() { #expect(function.read32(0x100 + 4 * index) == word, "word \(index)") }
    #expect(
      model.take().contains(.configurationWritten(offset: 0x104, width: .doubleword, value: 0xffff_ffff)))
    let control = AddressTranslationControl(rawValue: function.read16(0x106))
    #expect(control.isEnabled)
    #expect(control.smallestTranslationShift == 43)
    function.reset()
    #expect(function.read32(0x104) == 0x20)
    #expect(function.read32(0x10c) == 0x8100_0000)
  }

  @Test("a write of one clears the status bits that hardware sets")
  func status() {
    let (function, _) = make()
    let offset = 0x108 + PageRequestStatus.offset
    function.updateConfiguration { space in
      space.set(offset, PageRequestStatus([.responseFailure, .unexpectedGroupIndex, .responsePASIDRequired]).rawValue)
    }
    #expect(function.read16(offset) == 0x8003)
    function.write16(offset, 1)
    #expect(function.read16(offset) == 0x8002)
    function.write16(offset, 0xffff)
    #expect(function.read16(offset) == 0x8000)
  }

  /// A PASID travels in an end-end prefix of the request's packet (TLP), which Device Capabilities 2 must announce.
  @Test("a function with the PASID capability supports end-end TLP prefixes")
  func endToEndPrefix() {
    for (capabilities, expected): ([ExtendedCapability], UInt32) in [
      ([.processAddressSpace(width: 8)], 0x0070_0000), ([.addressTranslation(invalidateQueueDepth: 1)], 0),
    ] {
      let (function, _) = make(capabilities)
      // The PCI Express capability is the only one below 0x100, so it is at 0x40. Device Capabilities 2 is at 0x24 in
      // it.
      #expect(function.read32(0x40 + 0x24) == expected)
    }
  }
}
