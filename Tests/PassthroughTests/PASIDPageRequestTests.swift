import FakeVFIO
import Glibc
import Hardware
import Linux
import TestSupport
import Testing
import VFIO
import VTdOracle

@testable import Passthrough
@testable import VTd

/// Checks that page requests with a PASID reach the guest and its responses the kernel, while the PASID is attached.
@Suite struct PASIDPageRequestTests {
  /// Runs the body with a device whose PASIDs 5 and 6 are attached, and checks that the kernel holds nothing at the end.
  private func run(_ body: (PageRequestChain, FakeKernel) throws -> Void) throws {
    let kernel = PageRequestChain.makeKernel(pasidWidth: 20)
    do {
      let chain = try PageRequestChain(kernel, pasidWidth: 20)
      defer { chain.end() }
      chain.set(5, 0x30_0000)
      chain.set(6, 0x40_0000)
      #expect(kernel.pasids(of: 0) == [5, 6] && chain.notices.all == [])
      try body(chain, kernel)
    }
    #expect(kernel.complaints == [])
  }

  /// Sends a group of one request with each PASID, all with the same group index, and waits until they reach the guest.
  private func request(
    _ chain: PageRequestChain, _ kernel: FakeKernel, group: UInt32, _ pasids: [UInt32?],
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let before = chain.count
    for pasid in pasids { kernel.requestPages(of: 0, group: group, pasid: pasid, [0x7000]) }
    #expect(eventually { chain.count == before + UInt64(pasids.count) }, sourceLocation: sourceLocation)
  }

  @Test("requests with PASIDs enter the guest's queue, and a response goes to the group of its PASID")
  func requestsAndResponses() throws {
    try run { chain, kernel in
      request(chain, kernel, group: 3, [5, 6, nil])
      let words = chain.take().map(\.[0])
      #expect(words.map { $0 >> 32 & 0xf_ffff } == [5, 6, 0])
      #expect(words.map { $0 >> 8 & 1 } == [1, 1, 0], "the PASID is present")
      #expect(chain.respond(group: 3, pasid: 6))
      #expect(eventually { kernel.outstandingPASIDs == [0, 5] })
      #expect(kernel.responses == [FakeResponse(device: 0, index: 3, isSuccess: true)])
      #expect(chain.respond(group: 3, code: 1, pasid: 5))
      #expect(eventually { kernel.outstandingPASIDs == [0] })
      #expect(kernel.responses.last == FakeResponse(device: 0, index: 3, isSuccess: false))
      #expect(chain.status() & 2 == 0, "no response was unexpected")
    }
  }

  @Test("when a PASID leaves its table, only its own groups end", arguments: [0, 0x50_0000] as [UInt64])
  func endOfAPASID(_ root: UInt64) throws {
    try run { chain, kernel in
      request(chain, kernel, group: 3, [5, 6, 0])
      _ = chain.take()
      chain.set(5, root)
      #expect(kernel.outstandingPASIDs == [0, 6])
      #expect(kernel.responses == [FakeResponse(device: 0, index: 3, isSuccess: false, isAutomatic: true)])
      #expect(chain.respond(group: 3, pasid: 6))
      #expect(eventually { kernel.outstandingPASIDs == [0] })
      #expect(chain.status() & 2 == 0)
      // The guest answers the group that has ended.
      #expect(chain.respond(group: 3, pasid: 5))
      #expect(eventually { chain.status() & 2 != 0 })
      #expect(kernel.state.withLock { $0.refusedResponses } == 0, "no response went to another group")
    }
  }

  @Test("a group whose requests have different PASIDs is that of its last request")
  func mixedGroup() throws {
    try run { chain, kernel in
      kernel.requestPages(of: 0, group: 3, pasid: 6, partialPASID: 5, [0x7000, 0x8000])
      #expect(eventually { chain.count == 1 })
      #expect(chain.take().map { $0[0] >> 32 & 0xf_ffff } == [6])
      #expect(chain.respond(group: 3, pasid: 5))
      #expect(eventually { chain.status() & 2 != 0 })
      #expect(kernel.outstandingPASIDs == [6])
      #expect(chain.respond(group: 3, pasid: 6))
      #expect(eventually { kernel.outstandingPASIDs == [] })
      // The index is free for PASID 5.
      request(chain, kernel, group: 3, [5])
      #expect(chain.respond(group: 3, pasid: 5))
      #expect(eventually { kernel.outstandingPASIDs == [] })
    }
  }

  @Test("a change of the table without PASID ends no group of a PASID")
  func changeOfTheOtherTable() throws {
    try run { chain, kernel in
      request(chain, kernel, group: 3, [5, 0])
      _ = chain.take()
      #expect(chain.setTable(0x60_0000))
      #expect(kernel.outstandingPASIDs == [5])
      #expect(chain.respond(group: 3, pasid: 5))
      #expect(eventually { kernel.outstandingPASIDs == [] })
      request(chain, kernel, group: 4, [0])
    }
  }

  @Test("if the host attaches a PASID only without page requests, the PASID works without, and one notice says so")
  func refusal() throws {
    try run { chain, kernel in
      kernel.state.withLock { $0.devices[0].hasPageRequests = false }
      chain.set(7, 0x50_0000)
      chain.set(8, 0x60_0000)
      #expect(kernel.pasids(of: 0) == [5, 6, 7, 8])
      #expect(chain.notices.all.count == 1)
      guard case .pageRequestsRefused = chain.notices.all.first else {
        Issue.record("\(chain.notices.all)")
        return
      }
      // The kernel answers these requests itself.
      kernel.requestPages(of: 0, group: 1, pasid: 7, [0x7000])
      #expect(kernel.responses.last == FakeResponse(device: 0, index: 1, isSuccess: false, isAutomatic: true))
      // The table without PASID has still the queue, and its change ends its group.
      request(chain, kernel, group: 6, [nil])
      #expect(chain.setTable(0x70_0000) && kernel.outstandingPASIDs == [])
      #expect(chain.respond(withoutPASID: 6))
      #expect(eventually { chain.status() & 2 != 0 })
      chain.clearStatus()
      // So have those of PASIDs 5 and 6.
      request(chain, kernel, group: 2, [5])
      chain.set(5, 0)
      #expect(kernel.outstandingPASIDs == [])
      #expect(chain.respond(group: 2, pasid: 5))
      #expect(eventually { chain.status() & 2 != 0 })
    }
  }

  /// A guest that takes a request only when the test lets it.
  private final class Taker: PageRequestTaker {
    let taken = Notes<UInt32?>()
    let isOpen = SharedInteger()

    func take(_ request: PageRequest) -> PageRequestOutcome {
      taken.add(request.prefix?.pasid)
      while isOpen.value == 0 { usleep(500) }
      return .queued
    }
    func queueFailed(_ error: SystemError) {}
  }

  @Test("after a PASID is detached, no request of it that was read before enters the guest's queue, but others do")
  func order() throws {
    let kernel = PageRequestChain.makeKernel(pasidWidth: 20)
    do {
      let memory = try kernel.makeMemory()
      let device = try kernel.openDevice(0, for: memory)
      let parent = try memory.attachToParent(device, allowingPASIDs: true)
      let requests = try HostPageRequests(of: memory.iommufd)
      for pasid: UInt32 in 5...6 {
        let nested = try memory.nestedTable(
          GuestFirstStage(root: UInt64(pasid) << 16, levels: 4, domain: 5, pasid: pasid), on: parent, for: device,
          queue: requests.queue)
        try requests.changingTable(of: device.id, pasid: pasid, passesOn: true) { () throws(SystemError) in
          try device.attach(to: nested.table, pasid: pasid)
        }
      }
      let taker = Taker()
      requests.add(taker, for: device.id)
      for (group, pasid) in [(1, 5), (2, 5), (3, 6)] as [(UInt32, UInt32)] {
        kernel.requestPages(of: 0, group: group, pasid: pasid, [0x1000])
      }
      let server = TestThread { requests.serve() }
      #expect(eventually { taker.taken.all == [5] })
      let isDetached = SharedInteger()
      let detacher = TestThread {
        try? requests.changingTable(of: device.id, pasid: 5, passesOn: false) { () throws(SystemError) in
          try device.detach(pasid: 5)
        }
        isDetached.value = 1
      }
      #expect(eventually { kernel.responses.count == 2 })
      usleep(20_000)
      #expect(isDetached.value == 0, "the detachment waits for the request that is being passed on")
      taker.isOpen.value = 1
      server.join()
      detacher.join()
      #expect(taker.taken.all == [5, 6] && kernel.outstandingPASIDs == [6])
      requests.remove(device.id)
      try device.detach(pasid: 6)
      try device.detach()
    }
    #expect(kernel.complaints == [])
  }
}
