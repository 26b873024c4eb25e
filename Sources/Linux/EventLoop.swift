import CLinux
import Glibc
import Synchronization

/// A thread that waits for descriptors, timers and scheduled jobs, and calls their handlers: epoll(7).
///
/// The thread calls one handler after the other. A handler must not block, because all others wait for it: it reads and
/// writes only non-blocking files, and it never waits for another thread's answer. Work that may block needs a thread,
/// or a loop that serves nothing else. A handler does a bounded amount of work for each call, so that the others get
/// their turn.
///
/// Lock order: handlers are called without the loop's lock, which is a leaf. So a caller may hold any lock, with three
/// exceptions: `Registration.remove`, `perform` and `stop` wait for a running handler, so their caller must not hold a
/// lock that a handler takes. An owner that holds such a lock calls `Registration.cancel`, and its handler checks the
/// owner's state after it has taken the lock.
///
/// An event costs no allocation.
public final class EventLoop: Sendable {
  /// What a registration waits for, and what has happened. `hungUp` and `failed` need not be asked for.
  public struct Events: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// A read would not block (EPOLLIN).
    public static let readable = Events(rawValue: UInt32(EPOLLIN))
    /// A write would not block (EPOLLOUT).
    public static let writable = Events(rawValue: UInt32(EPOLLOUT))
    /// The peer of a stream socket sends no more (EPOLLRDHUP).
    public static let peerClosed = Events(rawValue: UInt32(EPOLLRDHUP))
    /// Neither direction of the connection works any more (EPOLLHUP).
    public static let hungUp = Events(rawValue: UInt32(EPOLLHUP))
    /// The file has an error, or a pipe has no reader (EPOLLERR).
    public static let failed = Events(rawValue: UInt32(EPOLLERR))
    /// Only for an interest: report each change once, instead of a state as long as it lasts (EPOLLET).
    public static let edgeTriggered = Events(rawValue: EPOLLET)
  }

  /// A descriptor that the loop waits for, until `remove`, `cancel` or the release of this object. Each must come
  /// before the descriptor is closed: while the file has another descriptor, epoll reports it for ever.
  public final class Registration: Sendable {
    private let key: UInt64
    private let core: EventLoopCore

    fileprivate init(key: UInt64, core: EventLoopCore) {
      self.key = key
      self.core = core
    }

    deinit { cancel() }

    /// Changes what the loop waits for; with an empty interest, no event calls the handler. A handler that already runs
    /// finishes.
    public func setInterest(_ interest: Events) { core.setInterest(interest, key) }

    /// Ends the registration without waiting. If the handler runs on the loop's thread now, it finishes; otherwise it
    /// never runs again.
    public func cancel() { core.cancel(key) }

    /// Ends the registration. When this returns, the handler does not run, and never will again. On the loop's own
    /// thread it does not wait, so a handler may remove itself.
    public func remove() { core.remove(key) }
  }

  /// A time at which the loop calls a handler once.
  public final class Timer: Sendable {
    private let number: UInt64
    private let core: EventLoopCore

    public init(on loop: EventLoop) {
      core = loop.core
      number = core.makeNumber()
    }

    deinit { stop() }

    /// Calls the handler at a time, rounded up to a millisecond. Replaces an earlier start whose handler has not begun.
    /// - Parameter deadline: in nanoseconds of CLOCK_MONOTONIC.
    public func start(at deadline: UInt64, _ handler: @escaping @Sendable () -> Void) {
      core.start(number, at: deadline, handler)
    }

    /// Cancels the start. A handler that already runs finishes.
    public func stop() { core.stop(number) }
  }

  /// A handler that any thread schedules. Several calls of `schedule` before the handler begins make it run once.
  public final class Job: Sendable {
    private let core: EventLoopCore
    fileprivate let work: EventLoopCore.Work

    public init(on loop: EventLoop) {
      core = loop.core
      work = EventLoopCore.Work()
    }

    /// Sets the handler. Must be called before `schedule`.
    public func onRun(_ handler: @escaping @Sendable () -> Void) { work.handler.withLock { $0 = handler } }

    /// Makes the loop call the handler soon. After the loop's end it does nothing.
    public func schedule() { core.schedule(work) }
  }

  fileprivate let core: EventLoopCore
  private let thread: Mutex<Thread?>

  /// - Parameter name: the name of the thread.
  public init(name: String) throws(SystemError) {
    let core = try EventLoopCore()
    self.core = core
    thread = Mutex(try Thread(name: name) { core.run() })
  }

  deinit { stop() }

  /// Waits for events of a descriptor from now on. The first call of the handler may come before this returns; an owner
  /// that needs the registration in its handler registers with an empty interest, and sets the interest afterwards.
  ///
  /// A file without a wait queue, such as a regular file, is always ready, as it is for poll(2).
  /// - Parameters:
  ///   - descriptor: may have only one registration with this loop.
  ///   - handler: called on the loop's thread with the events of the interest that have happened.
  public func register(
    _ descriptor: Int32, _ interest: Events, _ handler: @escaping @Sendable (Events) -> Void
  ) throws(SystemError) -> Registration {
    Registration(key: try core.add(descriptor, interest, handler), core: core)
  }

  /// Whether the caller is the loop's thread.
  public var isCurrent: Bool { core.isCurrent }

  /// Runs work on the loop's thread and waits for its end. On that thread the work runs at once; after the start of
  /// `stop` it runs on the caller's thread, even if a handler still runs.
  public func perform(_ work: @escaping @Sendable () -> Void) {
    if isCurrent { return work() }
    let done = Semaphore()
    let job = Job(on: self)
    job.onRun {
      work()
      done.signal()
    }
    if core.schedule(job.work) { done.wait() } else { work() }
  }

  /// Runs the scheduled jobs, then ends the thread and all registrations and timers. On the loop's own thread this does
  /// not wait; the thread ends after the handler.
  public func stop() { end { $0.join() } }

  /// As `stop`, for a loop whose handlers may block.
  /// - Parameter milliseconds: the time to wait before the thread's system calls are interrupted.
  /// - Returns: false if the thread still runs because a handler blocks.
  @discardableResult
  public func stop(patience milliseconds: UInt32) -> Bool {
    var hasEnded = true
    end { hasEnded = $0.join(patience: milliseconds) }
    return hasEnded
  }

  private func end(_ join: (Thread) -> Void) {
    core.beginEnd()
    let running = thread.withLock { $0.take() }
    if let running, !isCurrent { join(running) }
    core.clear()
  }
}
