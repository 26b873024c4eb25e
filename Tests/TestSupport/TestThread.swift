import Glibc

/// A POSIX thread, for tests in which one waits for another: the threads of Swift's own pool must not.
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

  /// To be called once.
  public func join() { pthread_join(handle, nil) }
}
