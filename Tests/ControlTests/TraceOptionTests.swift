import Machine
import Testing
import VTd

struct TraceOptionTests {
  @Test("-trace selects events by patterns, and each further -trace adds events")
  func patternsNameEvents() throws {
    #expect(try configuration("-kernel", "k").trace == nil)
    let one = try #require(configuration("-kernel", "k", "-trace", "vtd_dmar_fault").trace)
    #expect(one.events == [.faulted] && one.path == nil)
    let more = try #require(
      configuration("-kernel", "k", "-trace", "vtd_reg_*", "-trace", "enable=vtd_dmar_fault,file=t.log").trace)
    #expect(
      more.events == [.registerRead, .registerWrite, .rootTableSet, .interruptTableSet, .faulted])
    #expect(more.path == "t.log")
    #expect(try configuration("-kernel", "k", "-trace", "*").trace?.events.count == TraceEvent.allCases.count)
  }

  @Test func `patterns name events of units and of the machine alike`() throws {
    let native = try #require(configuration("-kernel", "k", "-trace", "pcie_*").trace)
    #expect(native.machineEvents == [.slotControlWritten, .slotEventSet] && native.events.isEmpty)
    let both = try #require(configuration("-kernel", "k", "-trace", "*_d*", "-trace", "acpi_pci_eject_slot").trace)
    #expect(both.machineEvents.isSuperset(of: [.removalRead, .drained, .deleted, .slotEjected]))
    #expect(both.events.contains(.translationEnabled) && !both.machineEvents.contains(.built))
  }

  @Test("help lists all events, sorted")
  func helpListsThem() throws {
    let names = try #require(printed("-trace", "help")).split(separator: "\n").map(String.init)
    #expect(names.count == TraceEvent.allCases.count + MachineTraceEvent.allCases.count)
    #expect(Set(names).count == names.count && names.contains("acpi_pci_unplug_request"))
    #expect(names == names.sorted() && names.contains("vtd_inv_desc_wait_sw"))
  }

  @Test("a star in a pattern matches any text, and a pattern may have 100 000 stars")
  func aPatternsStarTakesAnything() {
    func count(_ pattern: String) -> Int { TraceEvent.matching(pattern).count }
    #expect(count("vtd_inv_desc") == 1)
    #expect(count("*_desc_*_p*") == 3)  // iotlb_pages, iotlb_pasid, iotlb_pasid_pages
    #expect(count("*fault") == 2)
    #expect(count("vtd_*_*_*_*_*") == 2)  // wait_write_fail, iotlb_pasid_pages
    #expect(count("") == 0)
    #expect(count("vtd") == 0)
    #expect(count(String(repeating: "*", count: 100_000) + "x") == 0)
  }
}
