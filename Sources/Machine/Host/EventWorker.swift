import Hardware
import Linux
import Synchronization

/// A queue's worker: a thread that waits for an eventfd. The guest's doorbell signals it by ioeventfd if the
/// accelerator supports that.
///
/// The kernel takes milliseconds to attach a doorbell, because it waits for all CPUs. So the worker attaches it, not
/// the CPU that places the BAR: until then the guest's write is an exit, which wakes the worker, too. A doorbell is
/// detached at once, because another BAR may be placed at its address.
///
/// Lock order: code that holds `doorbell` takes no other lock. The accelerator is called while it is held.
final class EventWorker: QueueWorker {
  private let event: EventDescriptor
  private let doorbells: any Doorbells
  private let stopping = Atomic<Bool>(false)
  private let doorbell = Mutex(Doorbell())
  private let thread = Mutex<Thread?>(nil)
  private let handler: @Sendable () -> Void

  private struct Doorbell {
    var wanted: UInt64?
    var attached: UInt64?
    /// Whether the worker has tried to attach the wanted doorbell.
    var isTried = true
  }

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
      attachDoorbell()
      handler()
    }
  }

  func wake() { event.signal() }

  func setDoorbell(at address: UInt64?) {
    let hasChanged = doorbell.withLock { doorbell in
      guard doorbell.wanted != address else { return false }
      doorbell.wanted = address
      doorbell.isTried = false
      if let attached = doorbell.attached { doorbells.detach(event.rawValue, fromDoorbell: attached) }
      doorbell.attached = nil
      return address != nil
    }
    if hasChanged { event.signal() }
  }

  private func attachDoorbell() {
    doorbell.withLock { doorbell in
      guard !doorbell.isTried, let address = doorbell.wanted else { return }
      doorbell.isTried = true
      // If KVM refuses, for example two doorbells at one address, the write is an exit and wakes the worker.
      if doorbells.attach(event.rawValue, toDoorbell: address) { doorbell.attached = address }
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

/// The fallback when the host has no more threads or descriptors: the vCPU serves the queue itself.
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
