/// The information that a Multiboot 1 loader passes (0.6.96, section 3.3), and the first Swift code that runs.

/// Access to physical addresses: those up to 4 GiB are mapped one to one, those above through a window.
struct Window {
  private static let base: UInt64 = 512 << 30
  private static let pageSize: UInt64 = 2 << 20

  /// Maps a physical address.
  /// - Returns: an address of the byte at `physical`. It is valid up to the end of that 2 MiB page, until the next
  ///   call.
  static func address(of physical: UInt64) -> UInt64 {
    if physical < 4 << 30 { return physical }
    store64(addressOfWindowDirectory(), physical & ~(pageSize - 1) | 0x83)
    invalidatePage(base)
    return base + physical % pageSize
  }
}

enum Multiboot {
  static let loaderMagic: UInt32 = 0x2bad_b002
  nonisolated(unsafe) static var magic: UInt32 = 0
  nonisolated(unsafe) static var information: UInt64 = 0

  private static func has(_ bit: UInt32) -> Bool { load32(information) >> bit & 1 != 0 }

  /// The sizes in KiB of the memory from address 0 on and from 1 MiB on.
  static var lowerAndUpper: (lower: UInt32, upper: UInt32)? {
    has(0) ? (load32(information + 4), load32(information + 8)) : nil
  }

  /// The address of the command line, which ends with a zero byte.
  static var commandLine: UInt64? { has(2) ? UInt64(load32(information + 16)) : nil }

  struct MapEntry {
    var base: UInt64
    var length: UInt64
    var type: UInt32
  }

  static func forEachMapEntry(_ body: (MapEntry) -> Void) -> Bool {
    guard has(6) else { return false }
    let length = load32(information + 44)
    var at = UInt64(load32(information + 48))
    let end = at + UInt64(length)
    while at < end {
      body(MapEntry(base: load64(at + 4), length: load64(at + 12), type: load32(at + 20)))
      at += UInt64(load32(at)) + 4
    }
    return true
  }

  /// The text after `name=` on the command line, up to a space, as its address and length.
  static func option(_ name: StaticString) -> (address: UInt64, count: UInt64)? {
    guard var at = commandLine else { return nil }
    var startsWord = true
    while load8(at) != 0 {
      if startsWord, matches(name, at: at) {
        let start = at + UInt64(name.utf8CodeUnitCount) + 1
        var end = start
        while load8(end) != 0, load8(end) != 0x20 { end += 1 }
        return (start, end - start)
      }
      startsWord = load8(at) == 0x20
      at += 1
    }
    return nil
  }

  private static func matches(_ name: StaticString, at start: UInt64) -> Bool {
    for index in 0..<name.utf8CodeUnitCount where load8(start + UInt64(index)) != name.utf8Start[index] {
      return false
    }
    return load8(start + UInt64(name.utf8CodeUnitCount)) == 0x3d
  }

  /// A decimal number after `name=`.
  static func number(_ name: StaticString) -> UInt64? {
    guard let (address, count) = option(name), count > 0, count < 19 else { return nil }
    var value: UInt64 = 0
    for offset in 0..<count {
      let digit = load8(address + offset) &- 0x30
      guard digit < 10 else { return nil }
      value = value * 10 + UInt64(digit)
    }
    return value
  }
}

/// Returns the value of the hexadecimal digits at `at`, and the address of their end.
func parseHexadecimal(_ at: UInt64) -> (value: UInt64, end: UInt64) {
  var at = at
  var value: UInt64 = 0
  while true {
    let byte = load8(at)
    switch byte {
    case 0x30...0x39: value = value << 4 | UInt64(byte - 0x30)
    case 0x61...0x66: value = value << 4 | UInt64(byte - 0x61 + 10)
    default: return (value, at)
    }
    at += 1
  }
}

/// Waits until the condition holds, for at most so many ticks of the TSC. Returns whether it holds.
func wait(ticks: UInt64, until condition: () -> Bool) -> Bool {
  let start = readTimestamp()
  while readTimestamp() &- start < ticks {
    if condition() { return true }
    pauseProcessor()
  }
  return condition()
}

@_cdecl("runtimeMain")
func runtimeMain(magic: UInt32, information: UInt32) {
  Multiboot.magic = magic
  Multiboot.information = UInt64(information)
  Console.start()
  Interrupts.start()
  if magic != Multiboot.loaderMagic { Report.fail("the loader's magic number is not Multiboot's") }
  kernelMain()
  Report.end()
}
