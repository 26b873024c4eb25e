import Hardware
import Testing
import VTd
import VTdOracle

@testable import Control
@testable import Machine

/// What `info iommu` and `info iommu translate` say, word for word.
struct RemappingTextTests {
  private let four = RequesterID(bus: 0, device: 4, function: 0)

  private func inspection(_ guest: Guest?, includesAll: Bool = true) -> RemappingInspection {
    var options = IntelIOMMUOptions()
    options.id = nil
    let units = guest.map { guest in
      [
        RemappingUnit(
          UnitPlacement(
            name: "iommu0", options: options, registerBase: 0xfed9_0000, includesAll: includesAll,
            hasIOAPIC: includesAll, functions: includesAll ? [] : [four]), unit: guest.unit)
      ]
    }
    let functions = [
      NamedFunction(id: nil, kindName: "host bridge", address: RequesterID(rawValue: 0)),
      NamedFunction(id: "d0", kindName: "edu", address: four),
    ]
    return RemappingInspection(
      units: units ?? [], functions: { functions },
      unitIndex: { [four, hasUnit = guest != nil] in hasUnit && (includesAll || $0 == four) ? 0 : nil })
  }

  private func answer(_ guest: Guest?, _ words: String, includesAll: Bool = true) -> String {
    switch TranslationText.answer(
      words.split(separator: " ").map(String.init), inspection(guest, includesAll: includesAll))
    {
    case .success(let text): text
    case .failure(let mistake): mistake.line
    }
  }

  /// First stage alone: 0x3000 to 0x7000.
  private func firstStage() throws -> Guest {
    let guest = try Guest.firstStage()
    let root = guest.page()
    guest.map(0x3000, in: root, levels: 4, entry: 0x7000 | Guest.firstStageLeaf, tableBits: Guest.firstStageTable)
    guest.start(four, scalable: Guest.pasidEntry(type: 1, firstStage: root))
    return guest
  }

  @Test func aFirstStageWalk() throws {
    let guest = try firstStage()
    print(answer(guest, "d0 0x3010"))
    print(answer(guest, "04.0 0x13010 write"))
    let port = guest.port(four)
    _ = port.answer(0x3000)
    print(RemappingText.units(inspection(guest).states()))
    withExtendedLifetime(port) {}
  }

  @Test func aNestedWalk() throws {
    let guest = try Guest.nested()
    let first = guest.page()
    let second = guest.page()
    guest.map(0x3000, in: first, levels: 4, entry: 0x7000 | 0x27, tableBits: Guest.firstStageTable)
    for page: UInt64 in 0..<16 {
      let address = 0x10_0000 + page << 12
      guest.map(address, in: second, levels: 3, entry: address | 3, tableBits: 3)
    }
    guest.map(0x7000, in: second, levels: 3, entry: 0x9001, tableBits: 3)
    guest.start(
      four,
      scalable: Guest.pasidEntry(
        type: 3, firstStage: first, secondStage: second, addressWidth: 1, second: 1 << 23))
    print(answer(guest, "d0 0x3010 write"))
    print(answer(guest, "d0 0x3010 read"))
  }

  @Test func mistakes() throws {
    let guest = try firstStage()
    for words in ["", "d0", "d0 3f", "d0 0x1000 fetch", "d1 0x1000", "d0:x 0x1000", "d0:1048576 0", "00:04.0:5 0"] {
      print(answer(guest, words))
    }
    print(answer(nil, "d0 0"))
    print(answer(guest, "05.0 0", includesAll: false))
    print(RemappingText.units([]))
  }
}
