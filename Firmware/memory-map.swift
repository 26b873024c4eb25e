/// Tests the loader's memory map. Usable entries do not overlap. The test writes a different value to each end of each
/// usable entry, and then reads all of them: so each end is memory, and none is an alias of another. `memory=MiB` on
/// the command line is the expected size.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/memory-map" -m 64

private struct Probe {
  var address: UInt64
  var saved: UInt64
}

private func pattern(_ address: UInt64) -> UInt64 { ~address &* 0x9e37_79b9_7f4a_7c15 }

func kernelMain() {
  var probes = InlineArray<64, Probe>(repeating: Probe(address: 0, saved: 0))
  var count = 0
  var usable: UInt64 = 0
  var lastEnd: UInt64 = 0
  var isOrdered = true
  var coversDevices = false
  var upperEnd: UInt64 = 0
  let hasMap = Multiboot.forEachMapEntry { entry in
    put("memory ")
    put(Hexadecimal(entry.base, digits: 16))
    put(" + ")
    put(Hexadecimal(entry.length, digits: 16))
    put(" type ")
    put(entry.type)
    endLine()
    // Usable is type 1 (Multiboot 0.6.96, 3.3).
    guard entry.type == 1 else { return }
    let end = entry.base &+ entry.length
    if entry.length < 16 || end < entry.base || entry.base < lastEnd { isOrdered = false }
    lastEnd = end
    usable += entry.length
    if entry.base <= 0x10_0000 && end > 0x10_0000 { upperEnd = end }
    // Interrupt controllers and the IOMMU's registers.
    if entry.base < 0xff00_0000 && end > 0xfec0_0000 { coversDevices = true }
    if count + 2 <= 64 {
      probes[count].address = (entry.base + 7) & ~7
      probes[count + 1].address = (end - 8) & ~7
      count += 2
    }
  }
  Report.check("there is a memory map", hasMap && count > 0)
  Report.check("the usable entries are in order and do not overlap", isOrdered)
  Report.check("no usable entry covers the board's devices", !coversDevices)

  for index in 0..<count {
    let at = Window.address(of: probes[index].address)
    probes[index].saved = load64(at)
    store64(at, pattern(probes[index].address))
  }
  var wrong: UInt64?
  for index in 0..<count
  where load64(Window.address(of: probes[index].address)) != pattern(probes[index].address) {
    wrong = probes[index].address
  }
  // Restore in reverse order: if two addresses are the same memory, the value that was saved first is written last.
  for step in 0..<count {
    let index = count - 1 - step
    store64(Window.address(of: probes[index].address), probes[index].saved)
  }
  if let wrong {
    put("FAIL usable memory does not hold what was written at 0x")
    put(Hexadecimal(wrong))
    endLine()
    Report.countFailure()
  } else {
    Report.pass("both ends of each usable entry are memory")
  }

  if let sizes = Multiboot.lowerAndUpper {
    Report.check("lower memory is 512 to 640 KiB", sizes.lower >= 512 && sizes.lower <= 640)
    let upper = UInt64(sizes.upper) << 10
    // The map may end up to 4 MiB after upper memory.
    Report.check(
      "upper memory agrees with the map",
      upper > 0 && upperEnd >= 0x10_0000 + upper && upperEnd - 0x10_0000 - upper < 0x40_0000)
  } else {
    Report.fail("the loader gives no sizes of lower and upper memory")
  }

  if let megabytes = Multiboot.number("memory") {
    let expected = megabytes << 20
    put("usable: ")
    put(usable >> 10)
    put(" KiB")
    endLine()
    // The firmware and the hole below 1 MiB take up to 2 MiB.
    Report.check(
      "at most 2 MiB of the machine's memory are not usable", usable <= expected && usable + 2 << 20 >= expected)
  }
}
