import Testing

@testable import Machine

/// Checks the encoder of ACPI machine language against section 20.2 of ACPI 6.5.
@Suite struct MachineLanguageTests {
  @Test func `name segments are padded to four characters, and a prefix states that there are two or more`() {
    func text(_ path: String) -> String {
      String(decoding: MachineLanguage.nameString(path), as: UTF8.self)
    }
    #expect(text("S10") == "S10_")
    #expect(text(#"\LBUS"#) == #"\LBUS"#)
    #expect(text("^S10.S00") == "^.S10_S00_")
    #expect(text(#"\_SB.PCI0.S10.S00"#) == "\\/\u{4}_SB_PCI0S10_S00_")
    #expect(MachineLanguage.nameString(#"\"#) == [0x5c, 0])
  }

  @Test func `AML integers are encoded in the shortest form`() {
    for (value, bytes) in [
      (0, [0]), (1, [1]), (2, [0x0a, 2]), (0xff, [0x0a, 0xff]), (0x100, [0x0b, 0, 1]), (0xffff, [0x0b, 0xff, 0xff]),
      (0x1_0000, [0x0c, 0, 0, 1, 0]), (0xffff_ffff, [0x0c, 0xff, 0xff, 0xff, 0xff]),
      (0x1_0000_0000, [0x0e, 0, 0, 0, 0, 1, 0, 0, 0]),
    ] as [(UInt64, [UInt8])] {
      #expect(MachineLanguage.integer(value) == bytes)
    }
  }

  @Test func `a length counts its own bytes, and uses as few bytes as possible`() {
    for (size, length) in [
      (0, [1]), (0x3e, [0x3f]), (0x3f, [0x41, 4]), (0xffd, [0x4f, 0xff]), (0xffe, [0x81, 0x00, 0x01]),
      (0xf_fffc, [0x8f, 0xff, 0xff]), (0xf_fffd, [0xc1, 0x00, 0x00, 0x01]),
    ] as [(Int, [UInt8])] {
      let package = MachineLanguage.package([UInt8](repeating: 0xa5, count: size))
      #expect(Array(package.prefix(length.count)) == length, "\(size) bytes")
      #expect(package.count == length.count + size)
    }
  }
}
