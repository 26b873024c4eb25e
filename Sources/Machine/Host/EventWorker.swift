import Hardware
import Linux
import Synchronization

/// A queue's worker: a thread that waits for an eventfd, which the guest's doorbell signals by ioeventfd
/// where the accelerator has that.
final class EventWorker: QueueWorker {
  private let event: EventDescriptor
  private let doorbells: any Doorbells
  private let stopping = Atomic<Bool>(false)
  private let doorbell = Mutex<UInt64?>(nil)
  private let thread = Mutex<Thread?>(nil)
  private let handler: @Sendable () -> Void

  init(name: String, doorbells: any Doorbells, handler: @escaping @Sendable () -> Void) throws(SystemError) {
    event = try EventDescriptor()
    self.doorbells = doorbells
    self.handler = handler
    let started = try Thread(name: name) { [self] in run() }
    thread.withLock { $0 = started }
  }

  private func run() {
    while true {
      event.wait()
      if stopping.load(ordering: .acquiring) { return }
      handler()
    }
  }

  func wake() { event.signal() }

  func setDoorbell(at address: UInt64?) {
    doorbell.withLock { current in
      guard current != address else { return }
      if let current { doorbells.detach(event.rawValue, fromDoorbell: current) }
      current = nil
      // Where KVM will not, two doorbells at one address for example, the write comes as an exit and wakes us.
      if let address, doorbells.attach(event.rawValue, toDoorbell: address) { current = address }
    }
  }

  func stop() {
    setDoorbell(at: nil)
    stopping.store(true, ordering: .releasing)
    event.signal()
    thread.withLock { thread in
      thread?.join()
      thread = nil
    }
  }
}

/// Workers for the devices of one machine.
final class EventWorkerSource: QueueWorkerSource {
  private let doorbells: any Doorbells

  init(doorbells: any Doorbells) { self.doorbells = doorbells }

  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
    do {
      return try EventWorker(name: name, doorbells: doorbells, handler: handler)
    } catch {
      return InlineWorker(handler: handler)
    }
  }
}

/// What is left when the host gives no more threads or descriptors: the vCPU serves the queue itself.
private final class InlineWorker: QueueWorker {
  private let handler: @Sendable () -> Void
  private let stopped = Mutex(false)

  init(handler: @escaping @Sendable () -> Void) { self.handler = handler }

  func wake() {
    stopped.withLock { if !$0 { handler() } }
  }

  func setDoorbell(at address: UInt64?) {}

  func stop() { stopped.withLock { $0 = true } }
}
