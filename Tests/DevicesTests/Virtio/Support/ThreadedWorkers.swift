import Glibc
import Hardware
import Synchronization

/// A thread that runs a closure, to be joined.
final class TestThread: Sendable {
  private final class Body {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  private let handle: pthread_t

  init(_ run: @escaping @Sendable () -> Void) {
    var handle = pthread_t()
    pthread_create(
      &handle, nil,
      { argument in
        Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
        return nil
      }, Unmanaged.passRetained(Body(run)).toOpaque())
    self.handle = handle
  }

  func join() { pthread_join(handle, nil) }
}

/// Workers that are threads, as on the host: a wake is remembered, and served soon.
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

/// Waits until something is so, at most ten seconds.
func eventually(_ condition: () -> Bool) -> Bool {
  for _ in 0..<100_000 {
    if condition() { return true }
    usleep(100)
  }
  return false
}
