import Devices
import Hardware
import Testing

@Suite struct FirmwareConfigurationTests {
  private func items() -> FirmwareConfigurationItems {
    FirmwareConfigurationItems(memorySize: 0x1_8000_0000, processorCount: 3, maximumProcessorCount: 260)
  }

  private func read(_ device: FirmwareConfiguration, _ key: UInt16, count: Int) -> [UInt8] {
    device.write(offset: 0, width: .word, value: UInt64(key))
    return (0..<count).map { _ in device.readByte(1) }
  }

  @Test(
    "each item reads as its bytes, then as zeroes",
    arguments: [
      (0x0000, [0x51, 0x45, 0x4d, 0x55, 0]),  // "QEMU", then nothing
      (0x0001, [1, 0, 0, 0, 0]),
      (0x0003, [0, 0, 0, 0x80, 1, 0, 0, 0, 0]),
      (0x0005, [3, 0, 0]),
      (0x000f, [4, 1, 0]),
      (0x0019, [0, 0, 0, 0, 0]),
      (0x4005, [3, 0, 0]),
      (0x8005, [0, 0]),
      (0x0020, [0, 0]),
      (0x3fff, [0]),
      (0xffff, [0]),
    ] as [(UInt16, [UInt8])])
  func items(key: UInt16, expected: [UInt8]) {
    #expect(read(FirmwareConfiguration(items: items()), key, count: expected.count) == expected)
  }

  @Test("selecting an item starts at its first byte")
  func selectingStartsOver() {
    let device = FirmwareConfiguration(items: items())
    #expect(device.readByte(1) == 0x51)
    #expect(device.readByte(1) == 0x45)
    device.write(offset: 0, width: .word, value: 0)
    #expect(device.readByte(0) == 0x51)  // The selector port reads data too.
    device.write(offset: 1, width: .byte, value: 0xff)
    device.write(offset: 0, width: .byte, value: 5)
    #expect(device.readByte(1) == 0x45)
    device.write(offset: 0, width: .word, value: 5)
    device.reset()
    #expect(device.readByte(1) == 0x51)
  }

  @Test("only byte accesses read data")
  func onlyBytesAreRead() {
    let device = FirmwareConfiguration(items: items())
    #expect(device.read(offset: 0, width: .word) == 0xffff)
    #expect(device.readByte(1) == 0x51)
  }

  @Test("the directory lists files by name")
  func directoryListsFilesByName() throws {
    var items = items()
    try items.addFile(named: "opt/b", contents: [1, 2, 3])
    try items.addFile(named: "etc/a", contents: [UInt8](repeating: 7, count: 0x102))
    let device = FirmwareConfiguration(items: items)
    func entry(_ size: [UInt8], _ key: [UInt8], _ name: String) -> [UInt8] {
      size + key + [0, 0] + Array(name.utf8) + [UInt8](repeating: 0, count: 56 - name.utf8.count)
    }
    let expected =
      [0, 0, 0, 2] + entry([0, 0, 1, 2], [0, 0x20], "etc/a") + entry([0, 0, 0, 3], [0, 0x21], "opt/b") + [0]
    #expect(read(device, 0x19, count: 4 + 2 * 64 + 1) == expected)
    #expect(read(device, 0x20, count: 0x103) == [UInt8](repeating: 7, count: 0x102) + [0])
    #expect(read(device, 0x21, count: 4) == [1, 2, 3, 0])
  }

  @Test("files that the directory cannot show are refused")
  func refusesFilesThatTheDirectoryCannotShow() throws {
    var items = items()
    try items.addFile(named: String(repeating: "n", count: 55), contents: [])
    let long = String(repeating: "n", count: 56)
    #expect(throws: FirmwareConfigurationItems.FileError.unusableName(long)) {
      try items.addFile(named: long, contents: [])
    }
    #expect(throws: FirmwareConfigurationItems.FileError.unusableName("")) {
      try items.addFile(named: "", contents: [])
    }
    #expect(throws: FirmwareConfigurationItems.FileError.unusableName("é")) {
      try items.addFile(named: "é", contents: [])
    }
    try items.addFile(named: "etc/a", contents: [1])
    #expect(throws: FirmwareConfigurationItems.FileError.duplicateName("etc/a")) {
      try items.addFile(named: "etc/a", contents: [2])
    }
    #expect(read(FirmwareConfiguration(items: items), 0x20, count: 1) == [1])
  }
}
