import Hardware
import Linux
import Synchronization

/// A queue's worker: a thread that waits for an eventfd. The guest's doorbell signals it by ioeventfd if the
/// accelerator supports that. While the queue is lent, the doorbell signals a second eventfd, which the thread does not
/// read.
///
/// The kernel takes milliseconds to attach a doorbell, because it waits for all CPUs. So the worker attaches it, not
/// the CPU that places the BAR: until then the guest's write is an exit, which wakes the worker, too. A doorbell is
/// detached at once, because another BAR may be placed at its address.
///
/// Lock order: code that holds `doorbell` takes `kick` and no other lock; `kick` is a leaf. The accelerator is called
/// while `doorbell` is held.
final class EventWorker: QueueWorker {
  /// An eventfd with an identity, which notifiers keep open.
  private final class Event: Sendable {
    let descriptor: EventDescriptor
    init() throws(SystemError) { descriptor = try EventDescriptor() }
  }

  private struct Doorbell {
    var wanted: UInt64?
    /// The attached doorbell, with the eventfd that it signals.
    var attached: (address: UInt64, event: Int32)?
    /// Whether the worker has tried to attach the wanted doorbell.
    var isTried = true
  }

  /// The eventfd of a lent queue's doorbell, made for the first `lend` and kept.
  private struct Kick {
    var event: Event?
    var isLent = false

    var lent: Event? { isLent ? event : nil }
  }

  private let event: Event
  private let doorbells: any Doorbells
  private let stopping = Atomic<Bool>(false)
  private let doorbell = Mutex(Doorbell())
  private let kick = Mutex(Kick())
  private let thread = Mutex<Thread?>(nil)
  private let handler: @Sendable () -> Void

  init(name: String, doorbells: any Doorbells, handler: @escaping @Sendable () -> Void) throws(SystemError) {
    event = try Event()
    self.doorbells = doorbells
    self.handler = handler
    let started = try Thread(name: name) { [self] in run() }
    thread.withLock { $0 = started }
  }

  private func run() {
    while true {
      event.descriptor.wait()
      if stopping.load(ordering: .acquiring) { return }
      attachDoorbell()
      handler()
    }
  }

  func wake() { (kick.withLock { $0.lent } ?? event).descriptor.signal() }

  // MARK: Doorbell

  func setDoorbell(at address: UInt64?) {
    let hasChanged = doorbell.withLock { doorbell in
      guard doorbell.wanted != address else { return false }
      doorbell.wanted = address
      detach(&doorbell)
      return address != nil
    }
    if hasChanged { event.descriptor.signal() }
  }

  /// Detaches the doorbell. The worker attaches the wanted one the next time it runs.
  private func detach(_ doorbell: inout Doorbell) {
    doorbell.isTried = false
    if let (address, event) = doorbell.attached { doorbells.detach(event, fromDoorbell: address) }
    doorbell.attached = nil
  }

  private func attachDoorbell() {
    doorbell.withLock { doorbell in
      guard !doorbell.isTried, let address = doorbell.wanted else { return }
      doorbell.isTried = true
      let event = (kick.withLock { $0.lent } ?? event).descriptor.rawValue
      // If KVM refuses, for example two doorbells at one address, the write is an exit and wakes the worker.
      if doorbells.attach(event, toDoorbell: address) { doorbell.attached = (address, event) }
    }
  }

  // MARK: Lending

  func lend() -> QueueNotifiers? {
    let (lent, hasChanged) = kick.withLock { kick -> (Event?, Bool) in
      let wasLent = kick.isLent
      if kick.event == nil { kick.event = try? Event() }
      kick.isLent = kick.event != nil
      return (kick.event, kick.isLent && !wasLent)
    }
    guard let lent else { return nil }
    if hasChanged { redirectDoorbell() }
    return QueueNotifiers(
      kick: Notifier(descriptor: lent.descriptor.rawValue, owner: lent),
      call: Notifier(descriptor: event.descriptor.rawValue, owner: event))
  }

  func reclaim() {
    let hasChanged = kick.withLock { kick in
      defer { kick.isLent = false }
      return kick.isLent
    }
    if hasChanged { redirectDoorbell() }
  }

  /// Makes the doorbell signal the other eventfd. The worker runs, because it attaches the doorbell, and because a
  /// write may have signalled the former eventfd meanwhile.
  private func redirectDoorbell() {
    doorbell.withLock { detach(&$0) }
    event.descriptor.signal()
  }

  func stop() {
    setDoorbell(at: nil)
    stopping.store(true, ordering: .releasing)
    event.descriptor.signal()
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
