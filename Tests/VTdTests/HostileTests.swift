import Hardware
import Synchronization
import Testing
import VTdOracle

@testable import VTd

/// Nothing that a guest writes into registers, queue or tables causes a trap or a hang, or lets a request reach memory
/// that the tables do not map.
@Suite("hostile guests")
struct HostileTests {
  static let seed: UInt64 = .random(in: .min ... .max)

  static let shapes: [@Sendable (inout UnitOptions) -> Void] = [
    { _ in },
    {
      $0.scalableMode = true
      $0.deviceIOTLB = true
      $0.pasidBits = 20
      $0.snoopControl = true
    },
    {
      $0.scalableMode = true
      $0.firstStage = true
      $0.nested = true
      $0.addressWidth = 57
      $0.pasidBits = 20
      $0.deviceIOTLB = true
    },
  ]

  @Test("random register accesses, requests and interrupts do no harm", arguments: 0..<3)
  func random(shape: Int) throws {
    let seed = Self.seed &+ UInt64(shape)
    var random = SeededGenerator(seed: seed)
    let guest = try Guest(Self.shapes[shape])
    // Fill memory with plausible entries.
    for address in stride(from: UInt64(0), to: 0x8_0000, by: 8) {
      let kind = random.next() % 8
      let pointer = (random.next() % 0x80) << 12
      guest.store(
        kind < 5 ? pointer | random.next() & 0x1ff : kind == 5 ? 0 : kind == 6 ? random.next() : random.next() & 0xff,
        at: address)
    }
    let requesters = (0..<4).map { _ in
      Requester(id: RequesterID(rawValue: UInt16(random.next() % 64)), busMasterEnable: true)
    }
    let ports = requesters.map { guest.unit.makePort(for: $0) } + [guest.unit.makePort(for: requesters[0], pasid: 3)]
    let remotes = [KeepingRemote(), KeepingRemote(asksAgainToWrite: false)]
    for (remote, requester) in zip(remotes, requesters) { remote.connect(to: guest.unit, for: requester) }
    let offsets: [UInt64] = [
      0x18, 0x18, 0x18, 0x20, 0x28, 0x2c, 0x34, 0x38, 0x80, 0x88, 0x88, 0x90, 0x9c, 0xa0, 0xb8, 0xf0, 0xf8, 0xfc, 0x220,
      0x228, 0x22c,
    ]
    for _ in 0..<20_000 {
      switch random.next() % 8 {
      case 0, 1:
        let width = AccessWidth.allCases[Int(random.next() % 4)]
        var value = random.next() & random.next()
        let offset =
          random.next() % 8 == 0 ? random.next() % 0x1010 : offsets[Int(random.next() % UInt64(offsets.count))]
        if [0x20, 0x90, 0xb8].contains(offset) { value = (value & 0xc07) | (random.next() % 0x80) << 12 }
        if offset == 0x88 { value &= 0xfff }
        // Enabled features stay enabled; one more command bit is set.
        if offset == 0x18 { value = UInt64(guest.status) & 0x8680_0000 | 1 << (23 + random.next() % 9) }
        guest.unit.write(offset: offset, width: width, value: value & width.allOnes)
      case 2:
        _ = guest.unit.read(offset: random.next() % 0x1010, width: .quadword)
      case 3:
        let message = InterruptMessage(
          address: 0xfee0_0000 | random.next() & 0xfffff | (random.next() % 16 == 0 ? random.next() : 0),
          data: UInt32(truncatingIfNeeded: random.next() % 4))
        _ = guest.unit.remap(message, from: RequesterID(rawValue: 0x18), recordFault: random.next() % 2 == 0)
      case 4:
        requesters[Int(random.next() % 4)].id = RequesterID(rawValue: UInt16(random.next() % 64))
      default:
        let port = ports[Int(random.next() % UInt64(ports.count))]
        let input = random.next() % 2 == 0 ? random.next() : random.next() & 0x1ff_ffff
        let count = Int(random.next() % 2 == 0 ? 8 : random.next() >> 1)
        if case .at(_, let length) = port.answer(input, count: max(count, 1), random.next() % 2 == 0 ? .read : .write) {
          #expect(length > 0 && length <= max(count, 1), "seed \(seed)")
        }
        let remote = remotes[Int(random.next() % 2)]
        if let mapping = try? remote.miss(input, random.next() % 2 == 0 ? .read : .write) {
          #expect(mapping.range.contains(input) && mapping.range.first <= mapping.range.last, "seed \(seed)")
          #expect(mapping.range.first & 0xfff == 0 && mapping.range.last & 0xfff == 0xfff, "seed \(seed)")
          #expect(!mapping.range.overlaps(DMARange(first: 0xfee0_0000, last: 0xfeef_ffff)), "seed \(seed)")
        }
      }
    }
    guest.unit.reset()
    #expect(guest.status == 0)
    #expect(ports[0].answer(0x123) == .at(0x123, 8))
    #expect(remotes.allSatisfy { $0.held.isEmpty })
  }

  @Test("random descriptors are decoded or refused", arguments: [false, true])
  func descriptors(wide: Bool) throws {
    var random = SeededGenerator(seed: Self.seed)
    let capabilities = Capabilities(
      OptionsTests.options {
        $0.scalableMode = true
        $0.deviceIOTLB = true
        $0.pasidBits = 20
      })
    var decoded = 0
    for _ in 0..<200_000 {
      // Half of them have few bits set, so that many have no reserved bit set.
      let few = random.next() % 2 == 0 ? random.next() & random.next() & random.next() : .max
      let bits = DescriptorBits(
        low: random.next() & few & ~(random.next() & random.next()) & 0xffff_ffff_0fff_f03f | random.next() % 9,
        high: random.next() & few & ~0xffe, upper: random.next() % 16 == 0 ? 1 : 0)
      let mode: TranslationMode.TableMode = wide ? .scalable : .legacy
      if (try? Descriptor.decode(bits, tableMode: mode, capabilities: capabilities)) != nil { decoded += 1 }
    }
    #expect(decoded > 1000, "seed \(Self.seed)")
  }

  @Test("register reads and requests complete while two CPUs keep moving the queue's tail")
  func endlessQueue() async throws {
    let guest = try Guest()
    guest.enableQueue(wide: false)
    for offset in stride(from: UInt64(0), to: 0x1000, by: 16) { guest.store(0x12, at: guest.queueBase + offset) }
    let unit = guest.unit
    // Two threads ring the doorbell, each moving the other's tail, while a third reads registers and translates.
    let source = RequesterID(rawValue: 0x18)
    let port = guest.port(source)
    await withTaskGroup(of: Void.self) { group in
      for thread: UInt64 in 0..<2 {
        group.addTask {
          for round: UInt64 in 0..<400 {
            unit.write(offset: 0x88, width: .doubleword, value: ((round * 97 + thread * 40) % 256) * 16)
          }
        }
      }
      group.addTask {
        for round: UInt64 in 0..<4000 {
          _ = unit.read(offset: 0x80, width: .quadword)
          _ = port.answer(round << 12)
        }
      }
    }
    #expect(guest.read32(0x34) == 0)
    // Afterwards, the last doorbell has been served completely.
    guest.write64(0x88, 0)
    #expect(guest.read64(0x80) == 0)
  }

  @Test("translations give correct addresses while other threads invalidate and switch translation off and on")
  func threads() async throws {
    let guest = try Guest.firstStage()
    let source = RequesterID(rawValue: 0x18)
    let table = guest.page()
    for n: UInt64 in 0..<64 {
      guest.map(0x10_0000 + n * 0x1000, in: table, levels: 4, entry: (0x20_0000 + n * 0x1000) | 7, tableBits: 7)
    }
    let tables = guest.scalableTables(source: source, words: Guest.pasidEntry(type: 1, firstStage: table))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    guest.write32(0x38, 0)
    let unit = guest.unit
    await withTaskGroup(of: Void.self) { group in
      for thread: UInt64 in 0..<3 {
        let port = guest.port(source)
        group.addTask {
          for round: UInt64 in 0..<4000 {
            let n = (round &* 31 &+ thread) % 66
            let answer = port.answer(0x10_0000 + n * 0x1000, round % 2 == 0 ? .read : .write)
            // While translation is off, the address passes unchanged.
            let plain = Answer.at(0x10_0000 + n * 0x1000, 8)
            #expect(
              answer == plain
                || answer == (n < 64 ? Answer.at(0x20_0000 + n * 0x1000, 8) : .refused(.translation)))
          }
        }
      }
      group.addTask {
        for round in 0..<500 {
          unit.write(offset: 0xf8, width: .quadword, value: 1 << 63 | UInt64(1 + round % 2) << 60 | 5 << 32)
          unit.write(offset: 0x28, width: .quadword, value: 1 << 63 | 1 << 61)
          if round % 50 == 0 {
            unit.write(offset: 0x18, width: .doubleword, value: 0)
            unit.write(offset: 0x18, width: .doubleword, value: 1 << 31)
          }
          unit.write(offset: 0x22c, width: .doubleword, value: 1 << 31)
          _ = unit.counters
        }
      }
    }
    #expect(guest.load(guest.slot(of: 0x10_0000, in: table, levels: 4)) & 0x20 != 0)
  }
}
