import Hardware
import Testing

@Suite struct BitFieldsTests {
  @Test(
    "lowBits sets the given number of low bits, at most all",
    arguments: [
      (0, 0), (1, 1), (8, 0xff), (31, 0x7fff_ffff), (63, 0x7fff_ffff_ffff_ffff), (64, UInt64.max), (65, .max),
      (1000, .max),
    ] as [(Int, UInt64)])
  func lowBitsOfAnyCount(count: Int, expected: UInt64) {
    #expect(UInt64.lowBits(count) == expected)
  }

  @Test("lowBits of a narrow type stops at its width") func lowBitsOfNarrowTypes() {
    #expect(UInt8.lowBits(8) == 0xff)
    #expect(UInt8.lowBits(7) == 0x7f)
    #expect(UInt16.lowBits(16) == 0xffff)
    #expect(UInt16.lowBits(17) == 0xffff)
  }

  @Test("setting a single bit changes no other bit") func singleBits() {
    for position in 0..<64 {
      var value: UInt64 = 0
      value[bit: position] = true
      #expect(value == 1 << UInt64(position))
      #expect(value[bit: position])
      var others = ~value
      #expect(!others[bit: position])
      others[bit: position] = true
      #expect(others == .max)
      others[bit: position] = false
      #expect(others == ~value)
    }
  }

  /// Every field of a 32-bit register, compared with arithmetic on a wider type.
  @Test("reading and writing any field of a register affects that field alone") func everyFieldOfARegister() {
    let pattern: UInt32 = 0xa5c3_0f96
    for low in 0..<32 {
      for high in low..<32 {
        let mask = ((UInt64(1) << UInt64(high - low + 1)) - 1) << UInt64(low)
        #expect(UInt64(pattern[bits: low...high]) == (UInt64(pattern) & mask) >> UInt64(low))
        var value = pattern
        value[bits: low...high] = .max
        #expect(UInt64(value) == UInt64(pattern) | mask)
        value[bits: low...high] = 0
        #expect(UInt64(value) == UInt64(pattern) & ~mask)
      }
    }
  }

  @Test("a store drops the bits beyond the field") func aStoreDropsWhatIsBeyondTheField() {
    var value: UInt16 = 0
    value[bits: 4...7] = 0xfff5
    #expect(value == 0x50)
    value[bits: 0...15] = 0xbeef
    #expect(value == 0xbeef)
    #expect(value[bits: 0...15] == 0xbeef)
    value[bits: 15...15] = 0
    #expect(value == 0x3eef)
  }

  @Test("there are four access widths, and each has its mask of ones") func allOnesOfEachWidth() {
    #expect(AccessWidth.allCases.map(\.allOnes) == [0xff, 0xffff, 0xffff_ffff, .max])
    #expect(AccessWidth(rawValue: 3) == nil)
    #expect(AccessWidth(rawValue: 0) == nil)
  }
}

@Suite struct LittleEndianBytesTests {
  @Test("little-endian values are appended, loaded and stored at any offset") func loadsStoresAndAppends() {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt8(0x01))
    bytes.append(littleEndian: UInt16(0x0302))
    bytes.append(littleEndian: UInt32(0x0706_0504))
    bytes.append(littleEndian: UInt64(0x0f0e_0d0c_0b0a_0908))
    #expect(bytes == Array(1...15))
    #expect(bytes.load(UInt8.self, at: 14) == 0x0f)
    #expect(bytes.load(UInt16.self, at: 13) == 0x0f0e)
    #expect(bytes.load(UInt32.self, at: 1) == 0x0504_0302)
    #expect(bytes.load(UInt64.self, at: 7) == 0x0f0e_0d0c_0b0a_0908)
    bytes.store(UInt32(0xdead_beef), at: 11)
    #expect(bytes == Array(1...11) + [0xef, 0xbe, 0xad, 0xde])
  }
}

@Suite struct RequesterTests {
  @Test("a requester ID consists of bus, device and function") func fieldsOfARequesterID() {
    let id = RequesterID(bus: 0xab, device: 0x1f, function: 7)
    #expect(id.rawValue == 0xabff)
    #expect(id.bus == 0xab)
    #expect(id.device == 0x1f)
    #expect(id.function == 7)
    #expect(id.deviceFunction == 0xff)
    #expect(RequesterID(bus: 0, device: 2, function: 1).rawValue == 0x11)
    #expect(RequesterID(bus: 1, device: 33, function: 9) == RequesterID(bus: 1, device: 1, function: 1))
  }

  @Test("a requester ID equals the ID that is built from its fields") func everyRequesterIDSurvivesItsParts() {
    for raw in UInt16.min...UInt16.max {
      let id = RequesterID(rawValue: raw)
      #expect(RequesterID(bus: id.bus, device: id.device, function: id.function) == id)
    }
  }

  @Test("requester IDs print as in lspci") func namesAsLspciPrintsThem() {
    #expect("\(RequesterID(bus: 0, device: 2, function: 0))" == "00:02.0")
    #expect("\(RequesterID(bus: 0xff, device: 0x1f, function: 7))" == "ff:1f.7")
    #expect("\(RequesterID(rawValue: 0xff00))" == "ff:00.0")
  }

  @Test("requester IDs are ordered by bus, device and function") func orderIsThatOfTheBus() {
    let ids = [0x0108, 0x0010, 0x00ff, 0x0011].map { RequesterID(rawValue: $0) }
    #expect(ids.sorted().map(\.rawValue) == [0x0010, 0x0011, 0x00ff, 0x0108])
  }

  @Test("a requester starts with bus mastering disabled") func aRequesterStartsWithoutBusMastering() {
    let requester = Requester(id: RequesterID(rawValue: 0x10))
    #expect(!requester.busMasterEnable)
    requester.busMasterEnable = true
    #expect(requester.busMasterEnable)
    requester.id = RequesterID(rawValue: 0x0300)
    #expect(requester.id.bus == 3)
  }
}
