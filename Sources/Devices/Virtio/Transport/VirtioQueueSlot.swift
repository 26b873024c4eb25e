import Hardware
import Synchronization

/// One queue of a transport, with the worker that serves it. The driver's vCPU starts and stops the queue; the device
/// processes it on the worker's thread. If a datapath serves the queue, the worker only sends its interrupts, and only
/// those that have no eventfd.
///
/// Lock order: the transport's lock, then `session`. `session` is held while the device processes the queue. So a
/// thread that clears `isRunning` and then takes `session` waits for the request in flight only.
final class VirtioQueueSlot: VirtQueueOwner {
  private struct Session {
    /// nil while a datapath serves the queue.
    var queue: VirtQueue?
    /// The transport's count of resets at the start.
    let number: UInt64
  }

  /// An error that ended a session.
  struct Failure: Sendable {
    let session: UInt64
    let error: VirtQueueError
  }

  let index: Int
  private let device: any VirtioDevice
  private let interrupts: VirtioInterrupts
  private let running = Atomic<Bool>(false)
  private let vector = Atomic<UInt16>(CommonConfiguration.noVector)
  private let session = Mutex<Session?>(nil)
  private let worker = Mutex<(any QueueWorker)?>(nil)

  init(index: Int, device: any VirtioDevice, interrupts: VirtioInterrupts) {
    self.index = index
    self.device = device
    self.interrupts = interrupts
  }

  func setWorker(_ new: any QueueWorker) { worker.withLock { $0 = new } }
  func setVector(_ new: UInt16) { vector.store(new, ordering: .relaxed) }

  var interruptVector: UInt16 { vector.load(ordering: .relaxed) }

  var isRunning: Bool { running.load(ordering: .acquiring) }

  func signalUsed() { interrupts.signalQueue(vector: interruptVector) }

  func wake() { worker.withLock { $0 }?.wake() }
  func setDoorbell(at address: UInt64?) { worker.withLock { $0 }?.setDoorbell(at: address) }

  func start(_ queue: VirtQueue, session number: UInt64) {
    session.withLock { $0 = Session(queue: queue, number: number) }
    running.store(true, ordering: .releasing)
  }

  func lend() -> QueueNotifiers? { worker.withLock { $0 }?.lend() }
  func reclaim() { worker.withLock { $0 }?.reclaim() }

  /// Begins a session in which a datapath serves the lent queue.
  func startLent(session number: UInt64) {
    session.withLock { $0 = Session(queue: nil, number: number) }
    running.store(true, ordering: .releasing)
  }

  /// Ends processing after the request in flight, without waiting for that request.
  func halt() { running.store(false, ordering: .releasing) }

  /// Ends the session and waits for the request in flight.
  func stop() {
    halt()
    session.withLock { $0 = nil }
  }

  /// Processes the queue. The worker calls this.
  /// - Returns: the failure that ended the session, or nil.
  func serve() -> Failure? {
    session.withLock { session -> Failure? in
      guard isRunning, let number = session?.number else { return nil }
      do throws(VirtQueueError) {
        guard session?.queue != nil else {
          signalUsed()
          return nil
        }
        try session?.queue?.process(by: device, index: index)
        return nil
      } catch {
        // The driver controls Bus Master Enable: the queue continues when the driver sets it again.
        guard error != .memory(.disabled) else { return nil }
        halt()
        return Failure(session: number, error: error)
      }
    }
  }
}

extension VirtQueue {
  fileprivate mutating func process(by device: any VirtioDevice, index: Int) throws(VirtQueueError) {
    try device.process(queue: index, &self)
  }
}
