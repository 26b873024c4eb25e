import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("registers")
struct RegisterTests {
  /// Returns every 64-bit word of the register page that is not zero.
  func image(_ guest: Guest) -> [Int: UInt64] {
    var image: [Int: UInt64] = [:]
    for offset in stride(from: 0, to: 0x1000, by: 8) {
      let value = guest.read64(offset)
      if value != 0 { image[offset] = value }
    }
    return image
  }

  @Test("after a reset only version, capabilities and event masks are not zero")
  func resetImage() throws {
    let expected: [Int: UInt64] = [
      0x00: 0x10, 0x08: 0xd2_008c_222f_0606, 0x10: 0xf0_0f5a, 0x38: 0x8000_0000, 0xa0: 0x8000_0000,
    ]
    let guest = try Guest()
    #expect(image(guest) == expected)
  }

  @Test("a reset clears everything written and all caches")
  func reset() throws {
    let guest = try Guest.firstStage()
    let before = image(guest)
    let source = RequesterID(bus: 0, device: 3, function: 0)
    let tables = guest.scalableTables(source: source, words: Guest.pasidEntry(type: 4))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    guest.enableTranslation()
    guest.write32(0x38, 0)
    guest.write32(0x3c, 0x41)
    guest.write32(0x44, 0x100)
    let port = guest.port(source)
    #expect(port.answer(0x5000) == .at(0x5000, 8))
    #expect(port.answer(UInt64.max) == .refused(.translation))
    #expect(image(guest) != before)
    guest.unit.reset()
    #expect(image(guest) == before)
    #expect(port.answer(UInt64.max) == .at(.max, 8))
    #expect(guest.observer.take().suffix(2) == [.translationChanged, .interruptRemappingChanged])
  }

  @Test("only writable bits change", arguments: [false, true])
  func masks(scalable: Bool) throws {
    let guest = try Guest { $0.scalableMode = scalable }
    // Registers without effect on others, and their value after writing all ones.
    let expected: [(offset: Int, value: UInt64)] = [
      (0x00, 0x10), (0x20, scalable ? 0xffff_ffff_fc00 : 0xffff_ffff_f000), (0x3c, 0xffff), (0x40, 0xffff_fffc),
      (0x44, 0xffff_ffff), (0x64, 0), (0x90, 0xffff_ffff_f807), (0xa4, 0xffff),
      (0xb0, 0), (0xb8, 0xffff_ffff_f80f), (0xf0, 0xffff_ffff_ffff_f07f), (0x220, 0), (0xc0, 0), (0x800, 0),
    ]
    for (offset, value) in expected {
      for part in 0..<2 { guest.write32(offset + 4 * part, 0xffff_ffff) }
      let is64 = ![0x00, 0x3c, 0x40, 0x44, 0x64, 0xa4].contains(offset)
      #expect((is64 ? guest.read64(offset) : UInt64(guest.read32(offset))) == value, "at \(String(offset, radix: 16))")
    }
    #expect(guest.read64(0x08) == Capabilities(guest.unit.options).capability)
  }

  @Test("partial and unaligned accesses affect exactly their bytes")
  func partial() throws {
    let guest = try Guest()
    guest.write64(0x20, 0x1234_5678_9000)
    #expect(guest.unit.read(offset: 0x21, width: .byte) == 0x90)
    #expect(guest.unit.read(offset: 0x22, width: .word) == 0x5678)
    #expect(guest.unit.read(offset: 0x21, width: .doubleword) == 0x3456_7890)
    #expect(guest.unit.read(offset: 0x1e, width: .quadword) == 0x1234_5678_9000_0000)
    guest.unit.write(offset: 0x22, width: .byte, value: 0xaa)
    #expect(guest.read64(0x20) == 0x1234_56aa_9000)
    guest.unit.write(offset: 0x23, width: .word, value: 0xbbcc)
    #expect(guest.read64(0x20) == 0x12bb_ccaa_9000)
    // The last bytes of the page, and bytes beyond it.
    #expect(guest.unit.read(offset: 0xffc, width: .quadword) == 0)
    #expect(guest.unit.read(offset: 0x1000, width: .doubleword) == 0)
    #expect(guest.unit.read(offset: .max, width: .quadword) == 0)
    guest.unit.write(offset: 0xffc, width: .quadword, value: .max)
    guest.unit.write(offset: .max, width: .quadword, value: .max)
  }

  @Test("one quadword write sets both addresses of the fault event, as Xen does")
  func messageAddressPair() throws {
    let guest = try Guest()
    guest.write64(0x40, 0x0000_0100_fee0_1004)
    #expect(guest.read32(0x40) == 0xfee0_1004)
    #expect(guest.read32(0x44) == 0x100)
  }

  @Test("the command register reads as zero, and the status register reflects commands")
  func command() throws {
    let guest = try Guest()
    guest.command(set: 31)
    #expect(guest.status == 0x8000_0000)
    #expect(guest.read32(0x18) == 0)
    guest.command(set: 30)
    #expect(guest.status == 0xc000_0000)
    guest.command(set: 24)
    guest.command(set: 25)
    guest.command(set: 23)
    #expect(guest.status == 0xc380_0000)
    // A write of the top byte alone does not change CFI.
    guest.unit.write(offset: 0x1b, width: .byte, value: 0)
    #expect(guest.status == 0x4180_0000)
    // Write buffer flush has nothing to do and is never busy. Fault logs are not supported.
    guest.write32(0x18, 0x3880_0000)
    #expect(guest.status == 0x4180_0000)
  }

  @Test("without interrupt remapping, the commands for it do nothing")
  func noInterruptRemapping() throws {
    let guest = try Guest { $0.interruptRemapping = false }
    guest.write32(0x18, 0x0380_0000)
    #expect(guest.status == 0)
    guest.write64(0xb8, .max)
    #expect(guest.read64(0xb8) == 0)
  }

  @Test("register-based invalidation completes at once with the requested granularity")
  func registerInvalidation() throws {
    let guest = try Guest()
    _ = guest.observer.take()
    for granularity: UInt64 in 1...3 {
      guest.write64(0x28, 1 << 63 | granularity << 61 | 1 << 32 | 0x0008 << 16 | 9)
      #expect(guest.read64(0x28) >> 59 == granularity << 2 | granularity)
      guest.write64(0xf0, 0x1234_5000 | 0x40 | 2)
      guest.write64(0xf8, 1 << 63 | granularity << 60 | 3 << 48 | 9 << 32)
      #expect(guest.read64(0xf8) >> 57 == granularity << 3 | granularity)
    }
    let expected: [Invalidation] = [
      .allContexts, .allTranslations, .contextsOfDomain(9), .translationsOfDomain(9),
      .contextsOfDevice(RequesterID(rawValue: 8), FunctionMask(rawValue: 1)),
      .pagesOfDomain(9, PageRange(address: 0x1234_4000, addressMask: 2), leafOnly: true),
    ]
    #expect(guest.observer.take() == expected)
    // A reserved granularity, and an address mask beyond MAMV: nothing is invalidated, and IAIG reports it.
    guest.write64(0x28, 1 << 63)
    #expect(guest.read64(0x28) >> 59 == 0)
    guest.write64(0xf0, 19)
    guest.write64(0xf8, 1 << 63 | 3 << 60)
    #expect(guest.read64(0xf8) >> 57 == 3 << 3)
    #expect(guest.observer.take().isEmpty)
    // A write of the upper half alone starts an invalidation as well.
    guest.write32(0x2c, 0xa000_0000)
    #expect(guest.read32(0x2c) >> 27 == 0b0101)
  }

  @Test("address bits from MGAW up in IVA are ignored")
  func invalidateAddress() throws {
    let guest = try Guest { $0.addressWidth = 39 }
    _ = guest.observer.take()
    guest.write64(0xf0, .max << 39 | 0x12_3456_7000)
    guest.write64(0xf8, 1 << 63 | 3 << 60 | 9 << 32)
    let expected = Invalidation.pagesOfDomain(9, PageRange(address: 0x12_3456_7000, addressMask: 0), leafOnly: false)
    #expect(guest.observer.take() == [expected])
  }

  @Test("in scalable mode a register-based invalidation does nothing, and reports the actual granularity 00b")
  func registerInvalidationInScalableMode() throws {
    let guest = try Guest.scalable()
    guest.setRootTable(guest.page(), scalable: true)
    _ = guest.observer.take()
    for granularity: UInt64 in 1...3 {
      guest.write64(0x28, 1 << 63 | granularity << 61)
      #expect(guest.read64(0x28) >> 59 == granularity << 2)
      guest.write64(0xf8, 1 << 63 | granularity << 60)
      #expect(guest.read64(0xf8) >> 57 == granularity << 3)
    }
    #expect(guest.observer.take().isEmpty)
  }
}
