import Linux
import Synchronization
import VFIO

/// The thread that waits for a fault queue of the kernel's and serves it, as long as this is held.
final class HostPageRequestThread: Sendable {
  /// What the thread holds, which is not this.
  private final class End: Sendable {
    let event: EventDescriptor
    let threadID = Atomic<Int>(0)
    init() throws(SystemError) { event = try EventDescriptor() }
  }

  let requests: HostPageRequests
  private let end: End
  private let thread: Thread

  init(of iommufd: IOMMUFD) throws(SystemError) {
    let requests = try HostPageRequests(of: iommufd)
    let end = try End()
    thread = try Thread(name: "page requests") {
      end.threadID.store(Thread.currentID, ordering: .relaxed)
      while !requests.isBroken {
        let ready = Poll.readable([requests.queue.descriptor, end.event.rawValue])
        if ready[1] { return }
        requests.serve()
      }
    }
    self.requests = requests
    self.end = end
  }

  deinit {
    end.event.signal()
    // The last device may go while the thread is at one of its requests, and so be the thread's to end.
    if end.threadID.load(ordering: .relaxed) != Thread.currentID { thread.join() }
  }
}
