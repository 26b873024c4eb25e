import Glibc

/// A POSIX thread, for tests in which one thread waits for another: a thread of Swift's own pool must not block.
public final class TestThread: @unchecked Sendable {
  private final class Body {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  private var handle = pthread_t()

  public init(_ run: @escaping @Sendable () -> Void) {
    let code = pthread_create(
      &handle, nil,
      {
        Unmanaged<Body>.fromOpaque($0!).takeRetainedValue().run()
        return nil
      }, Unmanaged.passRetained(Body(run)).toOpaque())
    precondition(code == 0, "no thread")
  }

  /// Waits until the thread ends. Must be called at most once.
  public func join() { pthread_join(handle, nil) }
}
