import FakeVFIO
import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import Passthrough
@testable import VTd

/// Follows page requests from the kernel's fault queue to the guest's page request queue, and the responses back.
@Suite struct HostPageRequestTests {
  // MARK: Requests and responses

  @Test("a request reaches the guest, and its response reaches the kernel")
  func aRequestReachesTheGuestAndItsResponseTheKernel() throws {
    try PageRequestChain.run { chain, kernel in
      kernel.requestPages(of: 0, group: 0x1a5, [0x1234_5000, 0x1234_6000])
      #expect(eventually { chain.count == 2 })
      #expect(
        chain.take() == [
          [0x0018_0101, 0x1234_5000 | 0x1a5 << 3 | 3], [0x0018_0101, 0x1234_6000 | 0x1a5 << 3 | 7],
        ])
      #expect(kernel.responses == [] && kernel.outstandingCount == 1)
      #expect(chain.respond(group: 0x1a5))
      #expect(kernel.responses == [FakeResponse(device: 0, index: 0x1a5, isSuccess: true)])
      chain.request(group: 3)
      #expect(chain.respond(group: 3, code: 1))
      #expect(kernel.responses.last == FakeResponse(device: 0, index: 3, isSuccess: false))
      #expect(chain.status() == 0x8000 && chain.guest.takeFault() == nil)
    }
  }

  /// Kernels after 6.12 pass requests without PASID as such.
  @Test("requests with and without PASID are answered separately")
  func requestsWithoutPASID() throws {
    try PageRequestChain.run { chain, kernel in
      kernel.requestPages(of: 0, group: 9, pasid: nil, [0x1234_5000])
      kernel.requestPages(of: 0, group: 9, [0x1234_6000])
      #expect(eventually { chain.count == 2 })
      #expect(chain.take() == [[0x0018_0001, 0x1234_5000 | 9 << 3 | 7], [0x0018_0101, 0x1234_6000 | 9 << 3 | 7]])
      #expect(chain.respond(group: 9, code: 1))
      #expect(chain.guest.submitAndWait([0x9 | 0x18 << 16, 9 << 3]))
      #expect(kernel.responses.map(\.isSuccess) == [false, true] && chain.status() == 0x8000)
    }
  }

  /// Both devices share one queue and one table; their responses may come in either order.
  @Test("equal group indices of two devices are answered separately")
  func equalIndicesOfTwoDevicesAreSeparate() throws {
    try PageRequestChain.run(devices: 2) { chain, kernel in
      #expect(kernel.state.withLock { $0.queueOfTable.count } == 1, "they share the table")
      for device in 0..<2 { chain.request(device, group: 7) }
      #expect(chain.take().map { $0[0] } == [0x0018_0101, 0x0020_0101])
      #expect(chain.respond(1, group: 7, code: 1) && chain.respond(0, group: 7))
      #expect(
        kernel.responses == [
          FakeResponse(device: 1, index: 7, isSuccess: false), FakeResponse(device: 0, index: 7, isSuccess: true),
        ])
    }
  }

  @Test("a group of a hundred requests reaches the guest in order", arguments: [true, false])
  func aGroupMayBeLong(_ reportsOversizedGroups: Bool) throws {
    try PageRequestChain.run { chain, kernel in
      kernel.state.withLock { $0.reportsOversizedGroups = reportsOversizedGroups }
      kernel.requestPages(of: 0, group: 1, (0..<100).map { 0x10_0000 + $0 << 12 })
      #expect(eventually { chain.count == 100 })
      #expect(chain.take().map { $0[1] >> 12 } == (0x100..<0x164 as Range<UInt64>).map { $0 })
      #expect(chain.respond(group: 1) && kernel.responses.count == 1)
    }
  }

  @Test("an invalidation reaches the kernel before the response that follows it")
  func invalidationsComeBeforeTheResponse() throws {
    try PageRequestChain.run { chain, kernel in
      chain.request(group: 1)
      kernel.state.withLock { $0.calls = [] }
      chain.guest.submit([6 | 3 << 4 | 5 << 16, 0x5000], [0x9 | 1 << 4 | 0x18 << 16, 1 << 3])
      #expect(kernel.responses.count == 1)
      // The queue's thread may read at any time.
      #expect(kernel.state.withLock { $0.calls.filter { $0 != "read" } } == ["INVALIDATE", "respond"])
    }
  }

  // MARK: Wrong responses and requests

  @Test("a response that matches no request changes nothing")
  func unmatchedResponsesChangeNothing() throws {
    try PageRequestChain.run(devices: 2) { chain, kernel in
      chain.request(group: 5)
      #expect(chain.respond(group: 6), "another group")
      #expect(chain.status() == 0x8002)
      chain.models[0].function.writeConfiguration(offset: 0x1a6, width: .word, value: 2)
      #expect(chain.status() == 0x8000)
      #expect(chain.respond(1, group: 5), "another device")
      #expect(chain.respond(group: 5, pasid: 9), "another PASID")
      #expect(chain.guest.submitAndWait([0x9 | 0x18 << 16, 5 << 3]), "without PASID")
      #expect(chain.guest.submitAndWait([0x9 | 1 << 4 | 0x99 << 16, 5 << 3]), "a function that does not exist")
      #expect(kernel.responses == [] && kernel.state.withLock { $0.refusedResponses } == 0)
      #expect(chain.respond(group: 5) && chain.respond(group: 5, code: 1), "twice")
      #expect(kernel.responses == [FakeResponse(device: 0, index: 5, isSuccess: true)])
      #expect(kernel.state.withLock { $0.refusedResponses } == 0, "the kernel gets no response that it must refuse")
    }
  }

  @Test("Response Failure reaches the host as invalid and shows in the guest's PRI status")
  func aFailureIsInvalidForTheHostAndShownToTheGuest() throws {
    try PageRequestChain.run { chain, kernel in
      chain.request(group: 5)
      #expect(chain.respond(group: 5, code: 15))
      #expect(kernel.responses == [FakeResponse(device: 0, index: 5, isSuccess: false)])
      #expect(chain.status() == 0x8001)
    }
  }

  /// The function reuses an index before its response, which it must not do.
  @Test("a request with an outstanding index is answered as invalid")
  func anIndexThatIsOutstandingIsAnsweredAsInvalid() throws {
    try PageRequestChain.run { chain, kernel in
      chain.request(group: 5)
      for _ in 0..<50 { kernel.requestPages(of: 0, group: 5, [0x6000]) }
      #expect(eventually { kernel.responses.count == 50 })
      #expect(kernel.responses.allSatisfy { !$0.isSuccess && !$0.isAutomatic })
      #expect(chain.take().count == 1 && kernel.outstandingCount == 1)
      #expect(chain.respond(group: 5))
      #expect(kernel.responses.last?.isSuccess == true && kernel.responses.count == 51)
    }
  }

  // MARK: Requests that the guest does not see

  @Test("a request that overflows the guest's queue is answered with success")
  func anOverflowIsAnsweredWithSuccess() throws {
    try PageRequestChain.run { chain, kernel in
      for group in 0..<130 as Range<UInt32> { kernel.requestPages(of: 0, group: group, [0x5000]) }
      #expect(eventually { kernel.responses.count == 3 })
      #expect(kernel.responses.map(\.index) == [127, 128, 129] && kernel.responses.allSatisfy(\.isSuccess))
      #expect(chain.guest.read32(0xdc) == 3 && kernel.outstandingCount == 127)
      for group in 0..<127 as Range<UInt64> { #expect(chain.respond(group: group)) }
      #expect(kernel.responses.count == 130 && kernel.outstandingCount == 0)
    }
  }

  @Test("a request that the guest did not enable is answered as invalid")
  func whatTheGuestDidNotEnableIsInvalid() throws {
    try PageRequestChain.run { chain, kernel in
      let function = chain.models[0].function
      var count = 0
      /// - Parameter change: Makes the change if its argument is false, and reverts it if it is true.
      func refused(_ name: Comment, pasid: UInt32? = 0, fault: FaultReason? = nil, _ change: (Bool) -> Void) {
        change(false)
        count += 1
        kernel.requestPages(of: 0, group: UInt32(count), pasid: pasid, [0x5000])
        #expect(eventually { kernel.responses.count == count }, name)
        #expect(kernel.responses.last?.isSuccess == false && chain.count == 0, name)
        #expect(chain.guest.takeFault()?.reason == fault?.rawValue, name)
        change(true)
      }
      refused("PRI") { function.writeConfiguration(offset: 0x1a4, width: .word, value: $0 ? 1 : 0) }
      refused("bus mastering") { function.writeConfiguration(offset: 4, width: .word, value: $0 ? 4 : 0) }
      let context = chain.guest.load(chain.tables.context)
      refused("PRE", fault: .pageRequestNotEnabled) {
        chain.guest.store($0 ? context : context & ~0x10, at: chain.tables.context)
      }
      refused("PASIDE", fault: .pasidNotEnabled) {
        chain.guest.store($0 ? context : context & ~0x8, at: chain.tables.context)
      }
      refused("another PASID", pasid: 5) { _ in }
      // PASID 0 of a request is the guest's PASID 0 only if RID_PASID is 0.
      let entry = [0, 8, 16].map { chain.guest.load(chain.tables.entry + $0) }
      for (index, word) in entry.enumerated() {
        chain.guest.store(word, at: chain.tables.entry + 64 + UInt64(index) * 8)
      }
      refused("PASID 0 with another RID_PASID") { isBack in
        chain.guest.store(isBack ? 0 : 1, at: chain.tables.context + 8)
        _ = chain.guest.submitAndWait([1 | 1 << 4], [7 | 3 << 4])
      }
      #expect(kernel.responses.count { $0.isAutomatic } == 1, "the kernel answers for a PASID that is not attached")
      chain.request(group: 99)
      #expect(chain.respond(group: 99) && kernel.responses.last?.isSuccess == true)
    }
  }
}
