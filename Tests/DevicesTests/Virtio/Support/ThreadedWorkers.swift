import Glibc
import Hardware
import Synchronization
import TestSupport

/// Makes workers that are threads, as on the host: a wake is kept and served soon.
final class ThreadedWorkerSource: QueueWorkerSource {
  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
    ThreadedWorker(handler)
  }
}

final class ThreadedWorker: QueueWorker {
  private let pending = Atomic<Bool>(false)
  private let ending = Atomic<Bool>(false)
  private let thread = Mutex<TestThread?>(nil)

  init(_ handler: @escaping @Sendable () -> Void) {
    let thread = TestThread { [self] in
      while !ending.load(ordering: .acquiring) {
        if pending.exchange(false, ordering: .acquiringAndReleasing) { handler() } else { usleep(50) }
      }
    }
    self.thread.withLock { $0 = thread }
  }

  func wake() { pending.store(true, ordering: .releasing) }
  func setDoorbell(at address: UInt64?) {}

  func stop() {
    ending.store(true, ordering: .releasing)
    thread.withLock { $0.take() }?.join()
  }
}
