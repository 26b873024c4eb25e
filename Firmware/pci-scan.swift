/// Tests bus 0: configuration by ports and by memory, which must agree, and the size of each BAR. If the command line
/// has `expect=DD.F:VVVV:IIII,…`, the bus must have exactly these functions.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/pci-scan" -device intel-iommu

private let absent: UInt32 = 0xffff_ffff

private func putAddress(_ function: Function) {
  put(Hexadecimal(function.device, digits: 2))
  put(".")
  put(function.number)
}

private func fail(_ why: StaticString, _ function: Function, _ register: UInt32) {
  put("FAIL ")
  putAddress(function)
  put(", register 0x")
  put(Hexadecimal(register))
  put(": ")
  put(why)
  endLine()
  Report.countFailure()
}

/// Compares each doubleword through both mechanisms, and reads the identity also in bytes and words.
private func compare(_ function: Function, _ window: UInt64) {
  for register in stride(from: UInt32(0), to: 0x100, by: 4)
  where function.readPort(register) != load32(function.address(window, register)) {
    fail("ports and memory give different values", function, register)
  }
  let identity = function.readPort(0)
  for offset in UInt32(0)..<4 {
    let byte = UInt8(truncatingIfNeeded: identity >> (offset * 8))
    if function.readPort8(offset) != byte || load8(function.address(window, offset)) != byte {
      fail("a byte differs from the doubleword", function, offset)
    }
  }
  for half in UInt32(0)..<2 {
    let word = UInt16(truncatingIfNeeded: identity >> (half * 16))
    if function.readPort16(half * 2) != word || load16(function.address(window, half * 2)) != word {
      fail("a word differs from the doubleword", function, half * 2)
    }
  }
}

/// Writes ones to a BAR and restores it: PCI 3.0, 6.2.5.1.
private func sizingMask(_ function: Function, _ register: UInt32) -> UInt32 {
  let original = function.readPort(register)
  function.writePort(register, absent)
  let mask = function.readPort(register)
  function.writePort(register, original)
  if function.readPort(register) != original { fail("a BAR does not keep its old value", function, register) }
  return mask
}

private func sizeBARs(_ function: Function) {
  let command = function.readPort(0x04)
  // Turns memory and I/O decoding off while the BARs change. The status half is write-1-to-clear.
  function.writePort(0x04, command & 0xfffc)
  var register: UInt32 = 0x10
  while register < 0x28 {
    let at = register
    let mask = sizingMask(function, register)
    register += 4
    if mask == 0 { continue }
    var size: UInt64
    let isPort = mask & 1 != 0
    let isWide = mask & 7 == 4
    if isPort {
      // The upper half of an I/O BAR need not exist.
      size = UInt64((~(mask & ~3 | 0xffff_0000) & 0xffff) + 1)
    } else {
      var wide = UInt64(mask & ~0xf) | 0xffff_ffff_0000_0000
      if isWide {
        if register >= 0x28 {
          fail("a 64-bit BAR has no upper half", function, at)
          break
        }
        wide = UInt64(mask & ~0xf) | UInt64(sizingMask(function, register)) << 32
        register += 4
      } else if mask & 6 != 0 {
        fail("a BAR has a reserved type", function, at)
        continue
      }
      size = ~wide &+ 1
    }
    put("  BAR ")
    put((at - 0x10) / 4)
    put(isPort ? " I/O" : isWide ? " memory, 64 bits" : " memory, 32 bits")
    put(mask & 0xf == 0xc ? ", prefetchable, " : ", ")
    put(size)
    put(" bytes")
    endLine()
    if size & (size &- 1) != 0 || size < (isPort ? 4 : 16) { fail("a BAR's size is not a power of two", function, at) }
  }
  function.writePort(0x04, command & 0xffff)
}

/// Returns the identity that the command line gives for a function; nil if it does not list the function.
private func expectedIdentity(_ function: Function, _ text: (address: UInt64, count: UInt64)) -> UInt32? {
  var at = text.address
  while at < text.address + text.count {
    let device = parseHexadecimal(at)
    let number = parseHexadecimal(device.end + 1)
    let vendor = parseHexadecimal(number.end + 1)
    let identifier = parseHexadecimal(vendor.end + 1)
    if device.value == UInt64(function.device), number.value == UInt64(function.number) {
      return UInt32(truncatingIfNeeded: identifier.value << 16 | vendor.value)
    }
    at = identifier.end + 1
  }
  return nil
}

func kernelMain() {
  guard let window = EnhancedConfiguration.window else {
    Report.fail("there is no MCFG table")
    return
  }
  let expected = Multiboot.option("expect")
  var found: UInt32 = 0
  for device in UInt32(0)..<32 {
    var last: UInt32 = 0
    if Function(device: device, number: 0).readPort(0x0c) >> 23 & 1 != 0 { last = 7 }
    for number in 0...last {
      let function = Function(device: device, number: number)
      let identity = function.readPort(0)
      if load32(function.address(window, 0)) != identity { fail("ports and memory give different values", function, 0) }
      let wanted = expected.map { expectedIdentity(function, $0) ?? absent } ?? identity
      if identity != wanted {
        fail(
          identity == absent ? "an expected function is missing" : "the function is not the expected one",
          function, 0)
      }
      if identity == absent { continue }
      found += 1
      putAddress(function)
      put(" ")
      put(Hexadecimal(identity & 0xffff, digits: 4))
      put(":")
      put(Hexadecimal(identity >> 16, digits: 4))
      put(" class ")
      put(Hexadecimal(function.readPort(0x08) >> 8, digits: 6))
      endLine()
      compare(function, window)
      // Header type 0 has six BARs.
      if function.readPort(0x0c) >> 16 & 0x7f == 0 { sizeBARs(function) }
    }
  }
  Report.check("the bus has functions", found > 0)
  if !Report.hasFailed { Report.pass(expected == nil ? "scan" : "scan: the functions are the expected ones") }
}
