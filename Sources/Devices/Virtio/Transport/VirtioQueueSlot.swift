import Hardware
import Synchronization

/// One queue of a transport with the worker that serves it: started and stopped by the driver's vCPU, run on the
/// worker's thread.
///
/// Lock order: the transport's lock, then this one's. It is held while a device processes the queue, so to take it is
/// to wait for the request in flight, and no longer: `isRunning` ends the processing after that.
final class VirtioQueueSlot: VirtQueueOwner {
  private struct Session {
    var queue: VirtQueue
    /// The driver's session, as the transport counts them.
    let number: UInt64
  }

  /// What became of a session while its queue was served.
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

  var isRunning: Bool { running.load(ordering: .acquiring) }

  func signalUsed() { interrupts.signalQueue(vector: vector.load(ordering: .relaxed)) }

  func wake() { worker.withLock { $0 }?.wake() }
  func setDoorbell(at address: UInt64?) { worker.withLock { $0 }?.setDoorbell(at: address) }

  /// Puts the queue in service.
  func start(_ queue: VirtQueue, session number: UInt64) {
    session.withLock { $0 = Session(queue: queue, number: number) }
    running.store(true, ordering: .releasing)
  }

  /// Has processing end after the request in flight, without waiting for it.
  func halt() { running.store(false, ordering: .releasing) }

  /// Takes the queue out of service and waits for the request in flight.
  func stop() {
    halt()
    session.withLock { $0 = nil }
  }

  /// The worker's handler.
  /// - Returns: what made the queue unusable, if anything.
  func serve() -> Failure? {
    session.withLock { session -> Failure? in
      guard isRunning, let number = session?.number else { return nil }
      do throws(VirtQueueError) {
        try session?.queue.process(by: device, index: index)
        return nil
      } catch {
        // Bus Master Enable is the driver's own switch: the queue goes on when it is set again.
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
