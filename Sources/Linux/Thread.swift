import CLinux
import Glibc
import Synchronization

/// A POSIX thread that runs one function.
@safe
public final class Thread: @unchecked Sendable {
  private let handle: pthread_t
  /// Whether `join` has been called.
  private let isJoined = Atomic<Bool>(false)

  private final class Body {
    let name: String
    let run: @Sendable () -> Void
    init(name: String, run: @escaping @Sendable () -> Void) {
      self.name = name
      self.run = run
    }
  }

  /// The signal of a kick: it makes a blocking system call of the thread return EINTR.
  private static let kickSignal = SIGUSR1

  /// - Parameter name: for ps(1) and gdb(1); the kernel keeps 15 bytes of it.
  public init(name: String, _ run: @escaping @Sendable () -> Void) throws(SystemError) {
    var handle = pthread_t()
    // SAFETY: the body is retained here; the thread takes it over and releases it.
    let body = unsafe Unmanaged.passRetained(Body(name: name, run: run))
    let code = unsafe pthread_create(
      &handle, nil,
      { argument in
        let body = unsafe Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue()
        unsafe String(decoding: body.name.utf8.prefix(15), as: UTF8.self).withCString {
          unsafe nestling_name_thread($0)
        }
        Thread.admitKick()
        body.run()
        return nil
      }, body.toOpaque())
    if code != 0 {
      unsafe body.release()
      throw SystemError("pthread_create", name, code: code)
    }
    self.handle = handle
  }

  /// Detaches a thread that was never joined, so that it frees its own stack when it ends.
  deinit {
    if !isJoined.load(ordering: .relaxed) { pthread_detach(handle) }
  }

  /// Waits until the thread ends. Must be called at most once.
  public func join() {
    isJoined.store(true, ordering: .relaxed)
    pthread_join(handle, nil)
  }

  /// Waits up to `milliseconds` for the thread to end. If it still runs, interrupts its system calls repeatedly for
  /// 0.2 s. Must be called at most once, instead of the other `join`.
  /// - Parameter milliseconds: the time to wait before the interruption.
  /// - Returns: false if the thread still runs; it is then detached.
  @discardableResult
  public func join(patience milliseconds: UInt32) -> Bool {
    isJoined.store(true, ordering: .relaxed)
    if nestling_join_within(handle, milliseconds) == 0 { return true }
    Self.installKick()
    // Kick several times: a kick between two system calls interrupts neither.
    for _ in 0..<20 {
      kick()
      if nestling_join_within(handle, 10) == 0 { return true }
    }
    pthread_detach(handle)
    return false
  }

  /// Makes a blocking system call of the thread return EINTR. Call `installKick` before: without its handler, the
  /// signal ends the process.
  public func kick() { pthread_kill(handle, Self.kickSignal) }

  /// Unblocks the kick signal. A new thread inherits its creator's signal mask, and a creator that is a libdispatch
  /// worker has this signal blocked.
  private static func admitKick() {
    var set = sigset_t()
    // SAFETY: the set outlives the calls.
    unsafe sigemptyset(&set)
    unsafe sigaddset(&set, kickSignal)
    unsafe pthread_sigmask(SIG_UNBLOCK, &set, nil)
  }

  /// Installs an empty handler for the kick signal, so that the signal only interrupts system calls, and does not end
  /// the process.
  public static func installKick() {
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = { _ in }
    // SAFETY: the handler accesses nothing.
    unsafe sigaction(kickSignal, &action, nil)
  }

  /// The kernel's id of the calling thread.
  public static var currentID: Int { nestling_thread_id() }

  /// The number of times that the scheduler has preempted the calling thread (getrusage(2), `ru_nivcsw`).
  public static var preemptions: Int { nestling_thread_preemptions() }
}
