import Hardware
import Passthrough
import Testing
import VTd
import VTdOracle

@testable import Control
@testable import Machine

/// Compares `info iommu` and `info iommu translate` word for word.
struct RemappingTextTests {
  private let four = RequesterID(bus: 0, device: 4, function: 0)

  private func inspection(_ guest: Guest?, includesAll: Bool = true) -> RemappingInspection {
    var options = IntelIOMMUOptions()
    options.id = nil
    let units = guest.map { guest in
      [
        PlacedUnit(
          UnitPlacement(
            name: "iommu0", options: options, registerBase: 0xfed9_0000, includesAll: includesAll,
            hasIOAPIC: includesAll, functions: includesAll ? [] : [PCIPlace(four)]), unit: guest.unit)
      ]
    }
    let functions = [
      NamedFunction(id: nil, typeName: "host bridge", address: RequesterID(rawValue: 0)),
      NamedFunction(id: "d0", typeName: "edu", address: four),
    ]
    let unitIndex: @Sendable (RequesterID) -> Int? = { [four, hasUnit = guest != nil] in
      hasUnit && (includesAll || $0 == four) ? 0 : nil
    }
    return RemappingInspection(
      units: units ?? [], functions: { functions.map { ($0, unitIndex($0.address)) } }, unitIndex: unitIndex)
  }

  private func answer(_ guest: Guest?, _ words: String, includesAll: Bool = true) -> String {
    switch TranslationText.answer(
      words.split(separator: " ").map(String.init), inspection(guest, includesAll: includesAll))
    {
    case .success(let text): text
    case .failure(let mistake): mistake.line
    }
  }

  /// Returns a guest whose first stage maps 0x3000 to 0x7000.
  private func firstStage() throws -> Guest {
    let guest = try Guest.firstStage()
    let root = guest.page()
    guest.map(0x3000, in: root, levels: 4, entry: 0x7000 | Guest.firstStageLeaf, tableBits: Guest.firstStageTable)
    guest.start(four, scalable: Guest.pasidEntry(type: 1, firstStage: root))
    return guest
  }

  @Test("a first-stage walk is printed entry by entry, with its page or fault")
  func aFirstStageWalk() throws {
    let guest = try firstStage()
    #expect(
      answer(guest, "d0 0x3010") == """
        00:04.0 edu 'd0': read 0x3010, by iommu0
          scalable root entry     0x104000  0x0000000000105001                                    P CTP=0x105000
          scalable context entry  0x105400  0x0000000000106001                                    P PDTS=0 \
        PASIDDIRPTR=0x106000 RID_PASID=0
          PASID-directory entry   0x106000  0x0000000000107001                                    P SMPTBLPTR=0x107000
          PASID-table entry       0x107000  0x0000000000100000:0000000000000005:0000000000000049  P \
        PGTT=1 (first stage) DID=5 FSPM=0 (4-level) FSPTPTR=0x100000
          domain 5, first stage, 4 levels at 0x100000
          first stage level 4 [0]  0x100000  0x0000000000101027  P R/W U/S A -> 0x101000
          first stage level 3 [0]  0x101000  0x0000000000102027  P R/W U/S A -> 0x102000
          first stage level 2 [0]  0x102000  0x0000000000103027  P R/W U/S A -> 0x103000
          first stage level 1 [3]  0x103018  0x0000000000007067  P R/W U/S A D -> page 0x7000
          = 0x7010, page of 4K, to be cached as rw

        """)
    let refused = answer(guest, "04.0 0x13010 write")
    #expect(refused.contains("  first stage level 1 [19]  0x103098  0x0000000000000000  not present\n"))
    #expect(refused.hasSuffix("  = fault 0x71 (SFS.2): a first-stage entry is not present\n"))
  }

  @Test("a cached page that the tables contradict is reported as a missing invalidation")
  func aStalePage() throws {
    let guest = try firstStage()
    let port = guest.port(four)
    _ = port.answer(0x3000)
    #expect(answer(guest, "d0 0x3010").hasSuffix("  cached: 0x7010, page of 4K, rw, domain 5\n"))
    guest.store(0, at: 0x103018)
    #expect(
      answer(guest, "d0 0x3010").hasSuffix(
        """
          = fault 0x71 (SFS.2): a first-stage entry is not present
          cached: 0x7010, page of 4K, rw, domain 5; the tables say otherwise: an invalidation is missing

        """))
    withExtendedLifetime(port) {}
  }

  @Test("remote IOTLBs are listed with what they may hold")
  func remotes() throws {
    let guest = try firstStage()
    let remote = guest.remote(four)
    _ = try remote.miss(0x3010)
    let other = guest.remote(RequesterID(bus: 0, device: 5, function: 0))
    let text = RemappingText.units(inspection(guest).states())
    #expect(
      text.contains(
        """

          remote IOTLBs, in another process or the kernel
            source   misses  mappings  invalidations  may hold
            00:04.0       1         1              0  pages of domain 5, PASID 0
            00:05.0       0         0              0  nothing

        """))
    #expect(text.contains("    remote IOTLB misses    1\n"))
    withExtendedLifetime(other) {}
  }

  @Test("a unit is printed with its registers, tables, caches and counters")
  func unitsWithTheirTablesAndCaches() throws {
    let guest = try firstStage()
    let port = guest.port(four)
    _ = port.answer(0x3000)
    #expect(
      RemappingText.units(inspection(guest).states()) == """
        iommu0: registers at 0xfed90000, all devices, IOAPIC
          translation          on, scalable mode, root table 0x104000
          interrupt remapping  off
          invalidation queue   off
          registers            CAP 0x1d2008c222f0606, ECAP 0x880000f00f5a, GSTS 0xc0000000, FSTS 0x0, \
        FECTL 0x80000000, ICS 0x0, IQERCD 0x0

          00:00.0 host bridge
            fault 0x41 (SCT.2): the context entry is not present

          00:04.0 edu 'd0'
            root     0x104000  0x0000000000105001  P CTP=0x105000
            context  0x105400  0x0000000000106001  P PDTS=0 PASIDDIRPTR=0x106000 RID_PASID=0
            PASID 0, of requests without PASID
              directory  0x106000  0x0000000000107001                                    P SMPTBLPTR=0x107000
              entry      0x107000  0x0000000000100000:0000000000000005:0000000000000049  P \
        PGTT=1 (first stage) DID=5 FSPM=0 (4-level) FSPTPTR=0x100000
              -> domain 5, first stage, 4 levels at 0x100000

          cached context and PASID-table entries, by kind of request
            00:04.0  without PASID  context, PASID 0 -> domain 5, first stage, 4 levels at 0x100000

          cached pages
            source   PASID  domain  stage  address             goes to             size  rights
            00:04.0      0       5  first  0x0000000000003000  0x0000000000007000    4K  rw

          cached interrupt entries: none

          counters
            IOTLB misses       1
            first-stage walks  1
            context walks      1
            PASID walks        1

        """)
    withExtendedLifetime(port) {}
  }

  /// Caches pages and an interrupt entry, and records a fault.
  @Test("long lists are cut, and faults and interrupt entries are printed")
  func whatIsLongIsCut() throws {
    let guest = try firstStage()
    guest.store(0x20_0000 | 0xe7, at: 0x102000)
    let port = guest.port(four)
    // Around the interrupt range, each 4 KiB is a separate entry.
    guest.store(0xfee0_0000 - 0x20_0000 | 0xe7, at: 0x102008)
    for page in 0..<100 as Range<UInt64> {
      guest.map(
        0x80_0000 + page << 12, in: 0x100000, levels: 4, entry: 0x7000 | Guest.firstStageLeaf,
        tableBits: Guest.firstStageTable)
      _ = port.answer(0x80_0000 + page << 12)
    }
    _ = port.answer(0x4000_0000, .write)
    let table = guest.page()
    guest.store(0x0000_0100_0041_0001, at: table + 5 * 16)
    guest.store(0x4_0020, at: table + 5 * 16 + 8)
    guest.write64(0xb8, table | 7)
    guest.command(set: 24)
    guest.command(set: 25)
    _ = guest.unit.remap(
      InterruptMessage(address: 0xfee0_0010 | 5 << 5, data: 0), from: four, recordFault: true)
    let text = RemappingText.units(inspection(guest).states())
    #expect(text.contains("    and 52 more\n"))
    #expect(text.split(separator: "\n").count < 120)
    #expect(
      text.contains(
        "  recorded fault       00:04.0 write 0x40000000: fault 0x71 (SFS.2): a first-stage entry is not present\n"))
    #expect(text.contains("  interrupt remapping  on, 8-bit destinations, table 0x"))
    #expect(
      text.contains(
        """
            index  entry                                vector  destination  trigger  from
                5  0x0000000000040020:0000010000410001  0x41    0x100        edge     00:04.0

        """))
    withExtendedLifetime(port) {}
  }

  @Test("a nested walk is printed with the second-stage walk of each address")
  func aNestedWalk() throws {
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
    let lines = answer(guest, "d0 0x3010 write").split(separator: "\n").map(String.init)
    #expect(
      lines[5...].joined(separator: "\n") == """
          domain 5, nested: first stage 4 levels at 0x100000, second stage 3 levels at 0x101000
            second stage level 3 [0]    0x101000  0x0000000000105003  R W -> 0x105000
            second stage level 2 [0]    0x105000  0x0000000000106003  R W -> 0x106000
            second stage level 1 [256]  0x106800  0x0000000000100003  R W -> page 0x100000
          first stage level 4 [0]       0x100000  0x0000000000102027  P R/W U/S A -> 0x102000
            second stage level 3 [0]    0x101000  0x0000000000105003  R W -> 0x105000
            second stage level 2 [0]    0x105000  0x0000000000106003  R W -> 0x106000
            second stage level 1 [258]  0x106810  0x0000000000102003  R W -> page 0x102000
          first stage level 3 [0]       0x102000  0x0000000000103027  P R/W U/S A -> 0x103000
            second stage level 3 [0]    0x101000  0x0000000000105003  R W -> 0x105000
            second stage level 2 [0]    0x105000  0x0000000000106003  R W -> 0x106000
            second stage level 1 [259]  0x106818  0x0000000000103003  R W -> page 0x103000
          first stage level 2 [0]       0x103000  0x0000000000104027  P R/W U/S A -> 0x104000
            second stage level 3 [0]    0x101000  0x0000000000105003  R W -> 0x105000
            second stage level 2 [0]    0x105000  0x0000000000106003  R W -> 0x106000
            second stage level 1 [260]  0x106820  0x0000000000104003  R W -> page 0x104000
          first stage level 1 [3]       0x104018  0x0000000000007027  P R/W U/S A -> page 0x7000, a request sets D
          second stage level 3 [0]      0x101000  0x0000000000105003  R W -> 0x105000
          second stage level 2 [0]      0x105000  0x0000000000106003  R W -> 0x106000
          second stage level 1 [7]      0x106038  0x0000000000009001  R -> page 0x9000
          = fault 0x85 (SGN.6): no write permission
        """)
    #expect(answer(guest, "d0 0x3010 read").hasSuffix("  = 0x9010, page of 4K, to be cached as r-\n"))
  }

  @Test("'info iommu translate' reports each wrong argument with its own message")
  func mistakes() throws {
    let guest = try firstStage()
    let usage = "usage: info iommu translate DEVICE[:PASID] ADDRESS [read|write]"
    for (words, line) in [
      ("", usage), ("d0", usage), ("d0 0 read x", usage),
      ("d0 3f", "'3f' is not an address: a number (decimal, or hexadecimal with 0x)"),
      ("d0 0x1000 fetch", "the access must be read or write, not 'fetch'"),
      ("d1 0x1000", "no device 'd1'; nearest: d0"),
      ("d0:x 0x1000", "'x' is not a PASID: a number below 2^20"),
      ("d0:1048576 0", "'1048576' is not a PASID: a number below 2^20"),
    ] { #expect(answer(guest, words) == line) }
    #expect(
      answer(guest, "00:04.0:5 0").hasSuffix(
        "  = fault 0x45 (SCT.6): the context entry does not enable requests with PASID\n"))
    #expect(answer(nil, "d0 0") == "there is no IOMMU")
    #expect(answer(guest, "05.0 0", includesAll: false) == "no IOMMU translates for 00:05.0")
    #expect(answer(guest, "04.0 0xfee00000").hasSuffix("an interrupt request, which is not translated\n"))
    #expect(RemappingText.units([]) == "There is no IOMMU.\n")
  }

  @Test("each host attachment is described in one line")
  func whatTheHostHas() {
    let stage = GuestFirstStage(root: 0x12_3000, levels: 4, domain: 5, pasid: 0)
    let cases: [(HostBinding?, HostAttachment.Target, String?, String)] = [
      (
        .firstStage(stage), .nested(5, parent: 3, addressSpace: 1), "iommufd0",
        "nested, HWPT 5, 4 levels at 0x123000, on second stage, HWPT 3 over IOAS 1, iommufd0"
      ),
      (.secondStage, .parent(3, addressSpace: 1), "iommufd0", "second stage, HWPT 3 over IOAS 1, iommufd0"),
      (.secondStage, .addressSpace(1), nil, "the page table of IOAS 1"),
      (.blocked(.guestSecondStage), .none, "iommufd0", "nothing: the guest uses second-stage tables"),
      (.blocked(.refused), .none, nil, "nothing: the host refused the guest's tables"),
      (
        .blocked(.entry(.pasidEntryNotPresent)), .none, nil,
        "nothing: fault 0x59 (SPT.2): the PASID-table entry is not present"
      ),
    ]
    for (binding, target, iommufd, line) in cases {
      let attachment = HostAttachment(source: four, binding: binding, target: target, iommufd: iommufd)
      #expect(HostAttachmentText.line(attachment) == line)
    }
  }

  @Test("the table of each PASID is described in a line, of 64 PASIDs at most")
  func whatTheHostHasForPASIDs() {
    func attachment(_ pasids: [HostAttachment.PASID]) -> HostAttachment {
      HostAttachment(
        source: four, binding: .secondStage, target: .parent(3, addressSpace: 1), pasids: pasids, iommufd: "iommufd0")
    }
    let stage = GuestFirstStage(root: 0x12_3000, levels: 4, domain: 5, pasid: 7)
    let first = "on the host: second stage, HWPT 3 over IOAS 1, iommufd0"
    #expect(
      HostAttachmentText.lines(
        attachment([
          .init(number: 7, binding: .firstStage(stage), target: .nested(5, parent: 3, addressSpace: 1)),
          .init(number: 8, binding: .blocked(.refused), target: .none),
        ])) == [
          first,
          "on the host, PASID 7: nested, HWPT 5, 4 levels at 0x123000, on second stage, HWPT 3 over IOAS 1, iommufd0",
          "on the host, PASID 8: nothing: the host refused the guest's tables",
        ])
    let many = (1...70).map { HostAttachment.PASID(number: $0, binding: .secondStage, target: .none) }
    let lines = HostAttachmentText.lines(attachment(many))
    #expect(lines.count == 66 && lines.first == first && lines.last == "on the host: and 6 more PASIDs")
  }

  @Test("the log names units if there are several")
  func theLogNamesUnitsWhereThereAreSeveral() throws {
    let guest = try firstStage()
    let unit = inspection(guest).units[0]
    #expect(RemappingText.log(of: [unit]).hasPrefix("iommu: IOTLB hits: 0\n"))
    #expect(RemappingText.log(of: [unit, unit]).hasPrefix("iommu iommu0: IOTLB hits: 0\n"))
    #expect(RemappingText.log(of: []) == "")
  }
}
