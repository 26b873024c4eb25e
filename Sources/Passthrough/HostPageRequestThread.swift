import Linux
import Synchronization
import VFIO

/// The thread that serves a fault queue of the kernel, until this object is released.
final class HostPageRequestThread: Sendable {
  /// The objects that the thread holds. The thread does not hold `HostPageRequestThread`, so that its owners can
  /// release it.
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
    // If the thread itself releases the last device while it handles a request, it must not join itself.
    if end.threadID.load(ordering: .relaxed) != Thread.currentID { thread.join() }
  }
}
