import Hardware
import PCI
import Testing

/// Configuration space byte by byte: reset values and write masks from PCI Express Base 7.5 and 7.7.
@Suite struct ConfigurationImageTests {
  static let resetImage = [UInt8](rows: [
    0x00: "f4 1a 42 10  00 00 10 00  01 00 80 01  00 00 00 00",
    // BAR 1 is I/O; 2 is 64-bit and prefetchable; 4 is 32-bit and prefetchable.
    0x10: "00 00 00 00  01 00 00 00  0c 00 00 00  00 00 00 00",
    0x20: "08 00 00 00  00 00 00 00  00 00 00 00  f4 1a 00 11",
    0x30: "00 00 00 00  40 00 00 00  00 00 00 00  00 01 00 00",
    // MSI-X with 3 vectors, table at BAR 0 + 0, pending bits at BAR 0 + 0x800; MSI with 4 vectors, 64-bit, maskable.
    0x40: "11 4c 02 00  00 00 00 00  00 08 00 00  05 64 84 01",
    // PCI Express version 2, root complex integrated endpoint; role-based errors, FLR. Device Control has the defaults
    // of 7.5.3.4: relaxed ordering, no snoop, read requests of 512 bytes.
    0x60: "00 00 00 00  10 a0 92 00  00 80 00 10  10 28 00 00",
    0xa0: "09 00 05 aa  bb 00 00 00",
  ])

  static let writableImage = [UInt8](rows: [
    0x00: "00 00 00 00  47 05 00 00  00 00 00 00  ff 00 00 00",
    0x10: "00 f0 ff ff  e0 ff ff ff  00 00 00 ff  ff ff ff ff",
    0x20: "00 00 ff ff  00 00 00 00  00 00 00 00  00 00 00 00",
    0x30: "00 00 00 00  00 00 00 00  00 00 00 00  ff 00 00 00",
    0x40: "00 00 00 c0  00 00 00 00  00 00 00 00  00 00 71 00",
    0x50: "fc ff ff ff  ff ff ff ff  ff ff 00 00  0f 00 00 00",
    // Device Control's bit 15 starts a reset and reads zero; this test does not set it.
    0x60: "00 00 00 00  00 00 00 00  00 00 00 00  ff 78 00 00",
    0xa0: "00 00 00 ff  00 00 00 00",
  ])

  private func image(_ function: Function) -> [UInt8] { (0..<256).map { function.read8($0) } }

  @Test("configuration space has its reset values") func resetValues() {
    let (function, _) = TestBoard().make(.everything)
    #expect(image(function).dump == Self.resetImage.dump)
    for offset in stride(from: 0x100, to: 4096, by: 4) { #expect(function.read32(offset) == 0) }
  }

  @Test(
    "exactly the bits of the write mask are writable, with each access width",
    arguments: [AccessWidth.byte, .word, .doubleword, .quadword])
  func writableBits(width: AccessWidth) {
    let (function, _) = TestBoard().make(.everything)
    let flr = EverythingOffset.express + 9
    var ones: [UInt8] = []
    var zeroes: [UInt8] = []
    for offset in stride(from: 0, to: 256, by: width.rawValue) {
      var all = width.allOnes
      if (offset..<offset + width.rawValue).contains(flr) { all[bit: 8 * (flr - offset) + 7] = false }
      function.writeConfiguration(offset: offset, width: width, value: all)
      for byte in 0..<width.rawValue { ones.append(function.read8(offset + byte)) }
      function.writeConfiguration(offset: offset, width: width, value: 0)
      for byte in 0..<width.rawValue { zeroes.append(function.read8(offset + byte)) }
    }
    #expect(zip(ones, zeroes).map { $0 & ~$1 }.dump == Self.writableImage.dump)
    // Read-only bits have their reset value.
    #expect(zeroes.dump == zip(Self.resetImage, Self.writableImage).map { $0 & ~$1 }.dump)
  }

  @Test("nothing is writable beyond 256 bytes without extended capabilities") func nothingBeyondTheHeaderIsWritable() {
    let (function, _) = TestBoard().make(.everything)
    for offset in stride(from: 0x100, to: 4096, by: 4) {
      function.write32(offset, .max)
      #expect(function.read32(offset) == 0)
    }
  }

  @Test("a function without capabilities has no list, no interrupt pin and no BARs")
  func aBareFunctionHasNoCapabilities() {
    let (function, _) = TestBoard().make(.plain)
    #expect(function.read16(StandardOffset.status) == 0)
    #expect(function.read8(StandardOffset.capabilitiesPointer) == 0)
    #expect(function.read8(StandardOffset.interruptPin) == 0)
    for offset in stride(from: 0x10, to: 0x28, by: 4) {
      function.write32(offset, .max)
      #expect(function.read32(offset) == 0)
    }
  }

  @Test("the capability list contains each capability and ends") func theCapabilityListHasAllOfThemAndEnds() {
    let (function, _) = TestBoard().make(.everything)
    var found: [UInt8] = []
    var offset = Int(function.read8(StandardOffset.capabilitiesPointer))
    while offset != 0, found.count < 48 {
      #expect(offset % 4 == 0 && offset >= 0x40)
      found.append(function.read8(offset))
      offset = Int(function.read8(offset + 1))
    }
    #expect(found == [0x11, 0x05, 0x10, 0x09])
    #expect(function.capabilityOffsets == [EverythingOffset.vendor])
  }

  @Test("accesses of any width and alignment read the same bytes") func accessesOfAnyAlignmentSeeTheSameBytes() {
    let (function, _) = TestBoard().make(.everything)
    for width in AccessWidth.allCases {
      for offset in 0...256 - width.rawValue {
        var value: UInt64 = 0
        for index in 0..<width.rawValue { value |= UInt64(Self.resetImage[offset + index]) << (8 * UInt64(index)) }
        #expect(function.readConfiguration(offset: offset, width: width) == value)
      }
    }
  }
}

@Suite struct ConfigurationSpaceTests {
  @Test("a write of one clears a status bit, and a write of zero keeps it")
  func writeOneToClearKeepsWhatIsNotCleared() {
    var space = ConfigurationSpace()
    space.define(6, UInt16(0), writeOneToClear: 0xf900)
    space.set(6, UInt16(0xf910))
    space.write(6, .word, 0x8000)
    #expect(space.get(UInt16.self, 6) == 0x7910)
    space.write(6, .word, 0)
    #expect(space.get(UInt16.self, 6) == 0x7910)
    space.write(7, .byte, 0x01)
    #expect(space.get(UInt16.self, 6) == 0x7810)
    // Bit 4 is read-only.
    space.write(4, .doubleword, .max)
    #expect(space.get(UInt16.self, 6) == 0x0010)
  }

  @Test("an access that does not fit into configuration space reads ones and writes nothing")
  func accessesThatDoNotFitAreOnesAndNothing() {
    var space = ConfigurationSpace()
    space.define(4092, UInt32(0), writable: .max)
    for (offset, width) in [(4093, AccessWidth.doubleword), (4096, .byte), (-1, .byte), (4089, .quadword)] {
      #expect(space.read(offset, width) == width.allOnes)
      space.write(offset, width, .max)
    }
    #expect(space.get(UInt32.self, 4092) == 0)
    space.write(4092, .doubleword, 0x1234_5678)
    #expect(space.read(4092, .doubleword) == 0x1234_5678)
  }

  @Test("extended capabilities form a chain") func extendedCapabilitiesAreChained() {
    var space = ConfigurationSpace()
    let first = space.addExtendedCapability(id: 0x000b, version: 1, body: [1, 2, 3, 4, 5], writable: [0xff])
    let second = space.addExtendedCapability(id: 0x0023, version: 1, body: [UInt8](repeating: 0, count: 8))
    let third = space.addExtendedCapability(id: 0x001b, version: 2, body: [])
    #expect((first, second, third) == (0x100, 0x10c, 0x118))
    #expect(space.get(UInt32.self, 0x100) == 0x10c1_000b)
    #expect(space.get(UInt32.self, 0x10c) == 0x1181_0023)
    #expect(space.get(UInt32.self, 0x118) == 0x0002_001b)
    space.write(0x104, .doubleword, .max)
    #expect(space.get(UInt32.self, 0x104) == 0x0403_02ff)
  }
}
