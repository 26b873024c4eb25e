import FakeVFIO
import Glibc
import Hardware
import Linux
import TestSupport
import Testing
import VFIO

@testable import Passthrough
@testable import VTd

/// Checks the order of page requests and changes of tables: requests of a former table do not follow the change.
@Suite struct HostPageRequestOrderTests {
  /// A guest that takes a request only when the test lets it.
  private final class Taker: PageRequestTaker {
    let taken = Notes<UInt16>()
    let isOpen = SharedInteger()

    func take(_ request: PageRequest) -> PageRequestOutcome {
      taken.add(request.groupIndex)
      while isOpen.value == 0 { usleep(500) }
      return .queued
    }
    func queueFailed(_ error: SystemError) {}
  }

  @Test(
    "after a change of the table or a reset, no request that was read before enters the guest's queue",
    arguments: ["detached", "replaced", "reset", "removed"])
  func requestsDoNotFollowAChange(_ change: String) throws {
    let kernel = PageRequestChain.makeKernel()
    do {
      let memory = try kernel.makeMemory()
      let device = try kernel.openDevice(0, for: memory)
      let parent = try memory.attachToParent(device)
      let requests = try HostPageRequests(of: memory.iommufd)
      let nested = try memory.nestedTable(
        GuestFirstStage(root: 0x5000, levels: 4, domain: 5, pasid: 0), on: parent, for: device, queue: requests.queue)
      try requests.changingTable(of: device.id, ridPASID: 0) { () throws(SystemError) in
        try device.attach(to: nested.table)
      }
      let taker = Taker()
      requests.add(taker, for: device.id)
      for group in 1...2 as ClosedRange<UInt32> { kernel.requestPages(of: 0, group: group, [0x1000]) }

      let server = TestThread { requests.serve() }
      #expect(eventually { taker.taken.all == [1] })
      let isChanged = SharedInteger()
      let changer = TestThread {
        switch change {
        case "detached":
          try? requests.changingTable(of: device.id, ridPASID: nil) { () throws(SystemError) in try device.detach() }
        case "replaced":
          try? requests.changingTable(of: device.id, ridPASID: nil) { () throws(SystemError) in
            try device.attach(to: parent)
          }
        case "reset": requests.answerAll(of: device.id)
        default: requests.remove(device.id)
        }
        isChanged.value = 1
      }
      // The kernel, or the removal, answers both groups, while the guest still takes the first request.
      #expect(eventually { kernel.responses.count == 2 })
      usleep(20_000)
      #expect(isChanged.value == 0, "the change waits for the request that is being passed on")
      taker.isOpen.value = 1
      server.join()
      changer.join()
      #expect(taker.taken.all == [1] && kernel.responses.count == 2 && kernel.responses.allSatisfy { !$0.isSuccess })
      #expect(!requests.hasOutstanding(device.id))

      // Later requests are passed on again.
      requests.add(taker, for: device.id)
      try requests.changingTable(of: device.id, ridPASID: 0) { () throws(SystemError) in
        try device.attach(to: parent)
        try device.attach(to: nested.table)
      }
      kernel.requestPages(of: 0, group: 3, [0x1000])
      requests.serve()
      #expect(taker.taken.all == [1, 3] && requests.hasOutstanding(device.id))
      requests.remove(device.id)
      try device.detach()
    }
    #expect(kernel.complaints == [])
  }
}
