import Hardware
import Synchronization
import TestSupport
import Testing

/// A device that records writes. A read returns its name in the upper half and the offset in the lower half.
private final class Probe: BusDevice {
  let name: UInt64
  private let log = Mutex<[(offset: UInt64, width: AccessWidth, value: UInt64)]>([])
  private let changed = Mutex(false)

  init(_ name: UInt64) { self.name = name }

  var writes: [(offset: UInt64, width: AccessWidth, value: UInt64)] { log.withLock { $0 } }

  /// Returns the writes since the last call.
  func takeWrites() -> [(offset: UInt64, width: AccessWidth, value: UInt64)] {
    log.withLock { log in
      defer { log = [] }
      return log
    }
  }

  func visiblePartsChanged() { changed.withLock { $0 = true } }

  /// Returns whether `visiblePartsChanged` was called since the last call.
  func takeChanged() -> Bool {
    changed.withLock { changed in
      defer { changed = false }
      return changed
    }
  }

  func read(offset: UInt64, width: AccessWidth) -> UInt64 { name << 32 | (offset & 0xffff_ffff) }
  func write(offset: UInt64, width: AccessWidth, value: UInt64) { log.withLock { $0.append((offset, width, value)) } }
}

/// Returns the name of the device that answers at an address.
private func owner(_ bus: AddressBus, _ address: UInt64) -> UInt64? {
  bus.read(address: address, width: .quadword).map { $0 >> 32 }
}

@Suite struct AddressBusTests {
  @Test("an empty bus answers no access") func anEmptyBusAnswersNothing() {
    let bus = AddressBus()
    for width in AccessWidth.allCases {
      for address: UInt64 in [0, 1, 0x1000, .max - 7, .max] {
        #expect(bus.read(address: address, width: width) == nil)
        #expect(!bus.write(address: address, width: width, value: 1))
      }
    }
  }

  @Test("a device gets the offset in its region and a value of the access width")
  func accessesCarryTheOffsetAndAreCutToTheirWidth() {
    let bus = AddressBus()
    let device = Probe(0xabcd_ef01)
    _ = bus.attach(device, at: 0x1000, size: 0x100)
    #expect(bus.read(address: 0x1010, width: .byte) == 0x10)
    #expect(bus.read(address: 0x1010, width: .doubleword) == 0x10)
    #expect(bus.read(address: 0x1010, width: .quadword) == 0xabcd_ef01_0000_0010)
    #expect(bus.write(address: 0x10ff, width: .byte, value: .max))
    #expect(bus.write(address: 0x1000, width: .word, value: 0x1_2345))
    let writes = device.writes
    #expect(writes.map(\.offset) == [0xff, 0])
    #expect(writes.map(\.width) == [.byte, .word])
    #expect(writes.map(\.value) == [0xff, 0x2345])
  }

  @Test("an access beyond a region's edge is not answered") func anAccessBeyondARegionsEdgeIsNotAnswered() {
    let bus = AddressBus()
    let device = Probe(1)
    _ = bus.attach(device, at: 0x1000, size: 0x10)
    #expect(bus.read(address: 0xfff, width: .byte) == nil)
    #expect(bus.read(address: 0xfff, width: .word) == nil)
    #expect(bus.read(address: 0x100f, width: .byte) != nil)
    #expect(bus.read(address: 0x100f, width: .word) == nil)
    #expect(bus.read(address: 0x1009, width: .quadword) == nil)
    #expect(bus.read(address: 0x1008, width: .quadword) != nil)
    #expect(bus.read(address: 0x1010, width: .byte) == nil)
    #expect(!bus.write(address: 0x100f, width: .word, value: 0))
    #expect(device.writes.isEmpty)
  }

  @Test("an access across two regions is not answered") func anAccessAcrossTwoRegionsIsNotAnswered() {
    let bus = AddressBus()
    let (low, high) = (Probe(1), Probe(2))
    _ = bus.attach(low, at: 0x1000, size: 0x10)
    _ = bus.attach(high, at: 0x1010, size: 0x10)
    #expect(bus.read(address: 0x100e, width: .doubleword) == nil)
    #expect(!bus.write(address: 0x100e, width: .doubleword, value: 0))
    #expect(low.writes.isEmpty && high.writes.isEmpty)
  }

  @Test("a fixed region hides a movable one, whichever was attached first") func fixedWinsOverMovableInEitherOrder() {
    for fixedFirst in [true, false] {
      let bus = AddressBus()
      let (board, bar) = (Probe(1), Probe(2))
      if fixedFirst { _ = bus.attach(board, at: 0x2000, size: 0x100, priority: .fixed) }
      _ = bus.attach(bar, at: 0x1000, size: 0x4000, priority: .movable)
      if !fixedFirst { _ = bus.attach(board, at: 0x2000, size: 0x100, priority: .fixed) }
      #expect(owner(bus, 0x1ff8) == 2)
      #expect(owner(bus, 0x2000) == 1)
      #expect(owner(bus, 0x20f8) == 1)
      #expect(owner(bus, 0x2100) == 2)
      // The offset counts from the region's own start on both sides of the hole.
      #expect(bus.read(address: 0x2100, width: .doubleword) == 0x1100)
      #expect(bus.read(address: 0x1ffc, width: .doubleword) == 0xffc)
      #expect(bus.read(address: 0x1ffc, width: .quadword) == nil)
    }
  }

  @Test("of two overlapping movable regions the first answers until it is detached")
  func amongEqualsTheFirstWinsAndTheNextAppearsBehindIt() {
    let bus = AddressBus()
    let (first, second) = (Probe(1), Probe(2))
    let attachment = bus.attach(first, at: 0x1000, size: 0x1000, priority: .movable)
    _ = bus.attach(second, at: 0x1000, size: 0x1000, priority: .movable)
    #expect(owner(bus, 0x1800) == 1)
    bus.detach(attachment)
    #expect(owner(bus, 0x1800) == 2)
    bus.detach(attachment)
    #expect(owner(bus, 0x1800) == 2)
  }

  @Test("a device attached twice at one base stays there when one attachment is removed")
  func oneDeviceTwiceAtTheSameBaseStaysWhenOneGoes() {
    let bus = AddressBus()
    let device = Probe(1)
    let short = bus.attach(device, at: 0x1000, size: 0x10)
    let long = bus.attach(device, at: 0x1000, size: 0x20)
    #expect(bus.read(address: 0x100c, width: .quadword) == 0x1_0000_000c)
    bus.detach(long)
    #expect(owner(bus, 0x1008) == 1)
    #expect(owner(bus, 0x1010) == nil)
    bus.detach(short)
    #expect(owner(bus, 0x1008) == nil)
  }

  @Test("accesses up to the last address work, and none wraps around") func theTopOfTheSpace() {
    let bus = AddressBus()
    let (low, top) = (Probe(1), Probe(2))
    _ = bus.attach(low, at: 0, size: 0x1000)
    _ = bus.attach(top, at: .max - 0xfff, size: 0x1000)
    #expect(bus.read(address: .max, width: .byte) == 0xff)
    #expect(bus.read(address: .max - 7, width: .quadword) == 2 << 32 | 0xff8)
    #expect(bus.read(address: .max - 3, width: .doubleword) == 0xffc)
    // The access neither traps nor wraps around to the device at 0.
    #expect(bus.read(address: .max, width: .word) == nil)
    #expect(bus.read(address: .max - 6, width: .quadword) == nil)
    #expect(!bus.write(address: .max - 1, width: .doubleword, value: 0))
    #expect(low.writes.isEmpty && top.writes.isEmpty)
  }

  @Test("a region beyond the top of the address space ends at the top") func aRegionThatWouldRunPastTheTopEndsThere() {
    let bus = AddressBus()
    let device = Probe(1)
    let attachment = bus.attach(device, at: .max - 0xf, size: .max)
    #expect(owner(bus, .max - 0xf) == 1)
    #expect(bus.read(address: .max, width: .byte) != nil)
    #expect(owner(bus, 0) == nil)
    bus.detach(attachment)
    #expect(bus.read(address: .max, width: .byte) == nil)
  }

  @Test("a region may cover the whole space except its last byte") func aRegionOfTheWholeSpaceButItsLastByte() {
    let bus = AddressBus()
    _ = bus.attach(Probe(1), at: 0, size: .max)
    #expect(owner(bus, 0) == 1)
    #expect(bus.read(address: .max - 1, width: .byte) != nil)
    #expect(bus.read(address: .max, width: .byte) == nil)
    _ = bus.attach(Probe(2), at: 0, size: .max, priority: .movable)
    #expect(owner(bus, 1 << 63) == 1)
  }

  /// Each byte of a small address space must follow the rule: a fixed region answers before a movable one, and among
  /// equals the first attached one answers.
  @Test("each byte of random overlapping regions is answered by priority and order", arguments: 0..<20 as Range<UInt64>)
  func randomOverlapsFollowTheRule(seed: UInt64) {
    struct Region {
      let name: UInt64
      let range: Range<UInt64>
      let priority: AddressBus.Priority
      let attachment: AddressBus.Attachment
    }
    var random = SeededGenerator(seed: seed)
    let bus = AddressBus()
    var regions: [Region] = []
    for name in 1...40 as ClosedRange<UInt64> {
      if !regions.isEmpty, random.next() % 3 == 0 {
        let gone = regions.remove(at: Int(random.next() % UInt64(regions.count)))
        bus.detach(gone.attachment)
      }
      let base = random.next() % 256
      let size = 1 + random.next() % 64
      let priority: AddressBus.Priority = random.next() % 2 == 0 ? .fixed : .movable
      let attachment = bus.attach(Probe(name), at: base, size: size, priority: priority)
      regions.append(Region(name: name, range: base..<base + size, priority: priority, attachment: attachment))
      for address in 0..<330 as Range<UInt64> {
        let here = regions.filter { $0.range.contains(address) }
        let winner = here.first { $0.priority == .fixed } ?? here.first
        #expect(bus.read(address: address, width: .byte) == winner.map { (address - $0.range.lowerBound) & 0xff })
      }
    }
  }

  @Test(arguments: 0..<20 as Range<UInt64>)
  func `a region answers exactly in its visible parts, and its device is notified of each change`(seed: UInt64) {
    struct Region {
      let probe: Probe
      let base: UInt64
      let attachment: AddressBus.Attachment
      var parts: [Range<UInt64>]
    }
    var random = SeededGenerator(seed: seed)
    let bus = AddressBus()
    var regions: [Region] = []
    for name in 1...40 as ClosedRange<UInt64> {
      if !regions.isEmpty, random.next() % 3 == 0 {
        let gone = regions.remove(at: Int(random.next() % UInt64(regions.count)))
        bus.detach(gone.attachment)
        #expect(bus.visibleParts(of: gone.attachment) == [])
      }
      let base = random.next() % 256
      let priority: AddressBus.Priority = random.next() % 2 == 0 ? .fixed : .movable
      let probe = Probe(name)
      let attachment = bus.attach(probe, at: base, size: 8 + random.next() % 64, priority: priority)
      regions.append(
        Region(probe: probe, base: base, attachment: attachment, parts: bus.visibleParts(of: attachment)))
      for index in regions.indices {
        let region = regions[index]
        let parts = bus.visibleParts(of: region.attachment)
        #expect(region.probe.takeChanged() || parts == region.parts)
        regions[index].parts = parts
        #expect(zip(parts, parts.dropFirst()).allSatisfy { $0.upperBound < $1.lowerBound })
        _ = region.probe.takeWrites()
        for offset in 0..<80 as Range<UInt64> {
          bus.write(address: region.base + offset, width: .byte, value: 0)
        }
        #expect(region.probe.takeWrites().map(\.offset) == parts.flatMap { $0 })
      }
    }
  }

  @Test func `a region at the top of the space has visible parts`() {
    let bus = AddressBus()
    let top = bus.attach(Probe(1), at: .max - 0xfff, size: 0x1000, priority: .movable)
    #expect(bus.visibleParts(of: top) == [0..<0x1000])
    _ = bus.attach(Probe(2), at: .max, size: 1)
    #expect(bus.visibleParts(of: top) == [0..<0xfff])
    _ = bus.attach(Probe(3), at: 0, size: .max)
    #expect(bus.visibleParts(of: top) == [])
  }

  /// A device detaches itself during an access. This access completes, and the next one does not reach the device.
  @Test("detaching does not wait for an access in flight") func detachingDoesNotWaitForAnAccessInFlight() {
    final class Detaching: BusDevice {
      let bus: AddressBus
      let attachment = Mutex<AddressBus.Attachment?>(nil)
      init(bus: AddressBus) { self.bus = bus }
      func read(offset: UInt64, width: AccessWidth) -> UInt64 {
        if let attachment = attachment.withLock({ $0 }) { bus.detach(attachment) }
        return bus.read(address: 0x1000, width: .byte) == nil ? 0x55 : 0
      }
      func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
    }
    let bus = AddressBus()
    let device = Detaching(bus: bus)
    let attachment = bus.attach(device, at: 0x1000, size: 1)
    device.attachment.withLock { $0 = attachment }
    #expect(bus.read(address: 0x1000, width: .byte) == 0x55)
    #expect(bus.read(address: 0x1000, width: .byte) == nil)
  }

  /// Two threads attach and detach regions while two others access them. A fixed region always answers; a movable one
  /// answers with its own offset or does not answer.
  @Test("accesses are correct while regions are attached and detached") func accessesWhileRegionsMove() async {
    let bus = AddressBus()
    _ = bus.attach(Probe(1), at: 0x8000, size: 0x1000)
    await withTaskGroup(of: Int.self) { group in
      for mover in 0..<2 as Range<UInt64> {
        group.addTask {
          let device = Probe(2 + mover)
          for round in 0..<2_000 as Range<UInt64> {
            let base = (round % 16) * 0x1000
            let attachment = bus.attach(device, at: base, size: 0x2000, priority: .movable)
            bus.detach(attachment)
          }
          return 0
        }
      }
      for _ in 0..<2 {
        group.addTask {
          var wrong = 0
          for round in 0..<20_000 as Range<UInt64> {
            if bus.read(address: 0x8000 + round % 0xff0, width: .quadword) != 1 << 32 | round % 0xff0 { wrong += 1 }
            let address = (round * 8) % 0x8000
            if let value = bus.read(address: address, width: .quadword) {
              let offset = value & 0xffff_ffff
              if offset >= 0x2000 || (address - offset) % 0x1000 != 0 || !(2...3).contains(value >> 32) { wrong += 1 }
            }
          }
          return wrong
        }
      }
      for await wrong in group { #expect(wrong == 0) }
    }
    #expect(owner(bus, 0x1000) == nil)
  }
}
