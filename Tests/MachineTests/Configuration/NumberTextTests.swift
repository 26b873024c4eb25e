import Machine
import Testing

@Suite struct NumberTextTests {
  private static let numberTexts: [(String, UInt64)] = [
    ("0", 0), ("7", 7), ("0x1f", 31), ("0XFF", 255), ("18446744073709551615", .max),
    ("0xffffffffffffffff", .max),
  ]

  @Test("decimal and hexadecimal numbers are parsed", arguments: numberTexts)
  func numbers(_ text: String, _ value: UInt64) {
    #expect(NumberText.unsigned(text.utf8) == value)
  }

  @Test(
    "a malformed number is refused",
    arguments: [
      "", " 1", "1 ", "-1", "+1", "0x", "x1", "1a", "0xg", "010", "00", "18446744073709551616", "0x10000000000000000",
    ])
  func noNumbers(_ text: String) {
    #expect(NumberText.unsigned(text.utf8) == nil)
  }

  private static let sizeTexts: [(String, UInt64)] = [
    ("0", 0), ("512", 512), ("512B", 512), ("1k", 1024), ("64K", 65536), ("1.5G", 1_610_612_736), ("2m", 2_097_152),
    ("1T", 1_099_511_627_776), ("1P", 1_125_899_906_842_624), ("15E", 17_293_822_569_102_704_640), ("0x1000", 4096),
    ("0x1B", 27), ("0.5K", 512),
    ("1.999999999999999999K", 2047),
  ]

  @Test("a size with a suffix is parsed into bytes", arguments: sizeTexts)
  func sizes(_ text: String, _ bytes: UInt64) {
    #expect(NumberText.size(text.utf8, unit: 1) == bytes)
  }

  @Test(
    "a malformed size is refused",
    arguments: [
      "", "K", "1KB", "1KiB", "-1M", "1..5G", ".5G", "1.G", "16E", "1.5.5G", "99999999999999999999", "0x10K", "1e3",
      "1.0000000000000000000K",
    ])
  func noSizes(_ text: String) {
    #expect(NumberText.size(text.utf8, unit: 1) == nil)
  }

  @Test("a number without a suffix is a count of the given unit")
  func aNumberWithoutSuffixCountsTheUnit() {
    #expect(NumberText.size("512".utf8, unit: 1 << 20) == 512 << 20)
    #expect(NumberText.size("1.5".utf8, unit: 1 << 20) == 3 << 19)
    #expect(NumberText.size("512B".utf8, unit: 1 << 20) == 512)
    #expect(NumberText.size("18446744073709551615".utf8, unit: 1 << 20) == nil)
  }

  @Test("a size is printed in the largest unit that divides it")
  func sizesArePrintedInTheLargestUnit() {
    #expect(ByteCount(512).text == "512")
    #expect(ByteCount(4096).text == "4K")
    #expect(ByteCount(3 << 20).text == "3M")
    #expect(ByteCount(0).text == "0")
  }
}
