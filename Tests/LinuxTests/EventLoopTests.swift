import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

/// A pipe or a pair of sockets, closed at the end of the test.
private final class Pair: Sendable {
  let near: Int32
  let far: Int32
  private let isFarOpen = Atomic<Bool>(true)

  init(sockets: Bool = false) {
    var ends: [Int32] = [0, 0]
    if sockets {
      #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0, &ends) == 0)
    } else {
      #expect(pipe(&ends) == 0)
      for end in ends { #expect(fcntl(end, F_SETFL, O_NONBLOCK) == 0) }
    }
    (near, far) = (ends[0], ends[1])
  }

  deinit {
    closeFar()
    close(near)
  }

  func closeFar() { if isFarOpen.exchange(false, ordering: .relaxed) { close(far) } }
  func send(_ byte: UInt8 = 1) { _ = [byte].withUnsafeBytes { write(far, $0.baseAddress, 1) } }

  /// Reads one byte, if there is one.
  @discardableResult
  func take() -> UInt8? {
    var byte: UInt8 = 0
    return read(near, &byte, 1) == 1 ? byte : nil
  }
}

/// A place for a registration that its own handler needs.
private final class Holder: Sendable {
  let registration = Mutex<EventLoop.Registration?>(nil)
  func set(_ new: EventLoop.Registration?) { registration.withLock { $0 = new } }
  func cancel() { registration.withLock { $0 }?.cancel() }
  func remove() { registration.withLock { $0 }?.remove() }
}

@Suite(.timeLimit(.minutes(2))) struct EventLoopTests {
  private let loop: EventLoop

  init() throws { loop = try EventLoop(name: "loop test") }

  /// Waits until the loop has handled everything that has happened so far.
  private func settle() {
    // The first job may run in a round that fetched its events earlier; the second one runs in a later round.
    for _ in 0..<2 { loop.perform {} }
  }

  @Test("a handler gets the events of its descriptor, as long as their cause lasts")
  func readable() throws {
    let pair = Pair()
    let seen = Notes<UInt8>()
    let registration = try loop.register(pair.near, .readable) { events in
      if events == .readable, let byte = pair.take() { seen.add(byte) }
    }
    for byte in 1...3 as ClosedRange<UInt8> { pair.send(byte) }
    #expect(eventually { seen.all == [1, 2, 3] })
    registration.remove()
  }

  @Test("an interest selects the events, and can be changed")
  func interest() throws {
    let pair = Pair(sockets: true)
    let seen = Notes<EventLoop.Events>()
    let holder = Holder()
    holder.set(
      try loop.register(pair.near, .writable) { events in
        seen.add(events)
        holder.registration.withLock { $0 }?.setInterest([])
      })
    #expect(eventually { seen.all == [.writable] })
    pair.send()
    settle()
    #expect(seen.all == [.writable])
    holder.registration.withLock { $0 }?.setInterest([.readable, .writable])
    #expect(eventually { seen.all == [.writable, [.readable, .writable]] })
    holder.remove()
    holder.set(nil)
  }

  @Test("with edge triggering, a change is reported once")
  func edges() throws {
    let pair = Pair()
    let seen = Notes<EventLoop.Events>()
    let registration = try loop.register(pair.near, [.readable, .edgeTriggered]) { seen.add($0) }
    for round in 1...3 {
      pair.send()
      #expect(eventually { seen.all.count == round })
      settle()
      #expect(seen.all.count == round)
    }
    registration.remove()
  }

  @Test("a peer that leaves is reported as readable, closed and hung up")
  func hangUp() throws {
    let pair = Pair(sockets: true)
    let seen = Notes<EventLoop.Events>()
    let holder = Holder()
    holder.set(
      try loop.register(pair.near, [.readable, .peerClosed]) { events in
        seen.add(events)
        holder.cancel()
      })
    pair.closeFar()
    #expect(eventually { seen.all == [[.readable, .peerClosed, .hungUp]] })
    holder.set(nil)
  }

  @Test("without an interest, a hang-up neither calls the handler nor keeps the thread busy; the event is not lost")
  func pausedHangUp() throws {
    let pair = Pair(sockets: true)
    let seen = Notes<EventLoop.Events>()
    let registration = try loop.register(pair.near, []) { seen.add($0) }
    pair.send()
    pair.closeFar()
    settle()
    let before = processorTime()
    usleep(100_000)
    #expect(processorTime() - before < 50_000_000)
    #expect(seen.all == [])
    registration.setInterest([.readable, .edgeTriggered])
    #expect(eventually { seen.all == [[.readable, .hungUp]] })
    registration.remove()
  }

  /// The CPU time of the loop's thread in nanoseconds.
  private func processorTime() -> Int {
    let time = Counter()
    loop.perform {
      var spent = timespec()
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent)
      time.value.store(spent.tv_sec * 1_000_000_000 + spent.tv_nsec, ordering: .relaxed)
    }
    return time.value.load(ordering: .relaxed)
  }

  @Test("a regular file is always ready while there is an interest")
  func regularFile() throws {
    let folder = TemporaryFolder()
    let file = try FileDescriptor(opening: folder.make("file", [1, 2, 3]), O_RDONLY)
    let descriptor = file.rawValue
    let seen = Notes<UInt8>()
    let calls = Counter()
    let registration = try loop.register(descriptor, []) { events in
      calls.value.add(1, ordering: .relaxed)
      var byte: UInt8 = 0
      if events == .readable, read(descriptor, &byte, 1) == 1 { seen.add(byte) }
    }
    settle()
    #expect(calls.value.load(ordering: .relaxed) == 0)
    registration.setInterest(.readable)
    #expect(eventually { seen.all == [1, 2, 3] })
    registration.setInterest([])
    settle()
    let before = calls.value.load(ordering: .relaxed)
    settle()
    #expect(calls.value.load(ordering: .relaxed) == before)
    registration.remove()
    _ = file.rawValue
  }

  @Test("two registrations of a descriptor, and a closed descriptor, are errors")
  func refused() throws {
    let pair = Pair()
    let first = try loop.register(pair.near, .readable) { _ in }
    #expect(throws: SystemError("epoll_ctl", code: EEXIST)) { try loop.register(pair.near, .readable) { _ in } }
    #expect(throws: SystemError("epoll_ctl", code: EBADF)) { try loop.register(-1, .readable) { _ in } }
    first.remove()
    _ = try loop.register(pair.near, .readable) { _ in }
  }

  // MARK: The end of a registration

  @Test("after remove has returned, the handler does not run")
  func removed() throws {
    let pair = Pair()
    pair.send()
    for _ in 0..<300 {
      let isRemoved = Flag()
      let late = Flag()
      let began = Flag()
      let registration = try loop.register(pair.near, .readable) { _ in
        began.set()
        for _ in 0..<50 { if isRemoved.isSet { late.set() } }
      }
      while !began.isSet {}
      registration.remove()
      isRemoved.set()
      settle()
      #expect(!late.isSet)
    }
  }

  @Test("remove waits for the running handler")
  func removeWaits() throws {
    let pair = Pair()
    let began = Semaphore()
    let ended = Flag()
    let registration = try loop.register(pair.near, .readable) { _ in
      pair.take()
      began.signal()
      usleep(50_000)
      ended.set()
    }
    pair.send()
    began.wait()
    registration.remove()
    #expect(ended.isSet)
  }

  @Test("cancel does not wait, so its caller may hold a lock that the handler takes")
  func cancelUnderALock() throws {
    let pair = Pair()
    let began = Semaphore()
    let owner = Owner()
    let seen = Notes<Bool>()
    let registration = try loop.register(pair.near, .readable) { _ in
      pair.take()
      began.signal()
      owner.isOpen.withLock { seen.add($0) }
    }
    owner.isOpen.withLock { isOpen in
      pair.send()
      began.wait()
      // The handler waits for the lock now.
      registration.cancel()
      isOpen = false
    }
    settle()
    #expect(seen.all == [false])
    pair.send()
    settle()
    #expect(seen.all == [false])
  }

  private final class Owner: Sendable {
    let isOpen = Mutex(true)
  }

  @Test("a handler may remove its own registration")
  func removesItself() throws {
    let pair = Pair()
    let calls = Notes<Int>()
    let holder = Holder()
    holder.set(
      try loop.register(pair.near, []) { _ in
        calls.add(1)
        holder.remove()
      })
    holder.registration.withLock { $0 }?.setInterest(.readable)
    pair.send()
    #expect(eventually { calls.all == [1] })
    settle()
    #expect(calls.all == [1])
    holder.set(nil)
  }

  @Test("an event that the loop had fetched for a removed registration does not reach its successor")
  func fetchedEvent() throws {
    let (first, second, third) = (Pair(), Pair(), Pair())
    let seen = Notes<String>()
    let (a, b, c) = (Holder(), Holder(), Holder())
    // Each handler removes the other's registration, and registers the third pair, which gets the freed slot. So the
    // kernel's order of the events does not matter.
    func react(_ name: String, _ others: [Holder]) -> @Sendable (EventLoop.Events) -> Void {
      { [loop] _ in
        seen.add(name)
        for other in others { other.remove() }
        c.set(try? loop.register(third.near, .readable) { _ in seen.add("third") })
      }
    }
    a.set(try loop.register(first.near, [.readable, .edgeTriggered], react("first", [b])))
    b.set(try loop.register(second.near, [.readable, .edgeTriggered], react("second", [a])))
    // Both are ready when the loop fetches its next events.
    loop.perform {
      first.send()
      second.send()
    }
    settle()
    #expect(seen.all.count == 1 && seen.all != ["third"])
    third.send()
    #expect(eventually { seen.all.contains("third") })
    for holder in [a, b, c] {
      holder.remove()
      holder.set(nil)
    }
  }

  // MARK: Timers

  @Test("timers fire in the order of their deadlines, and never early")
  func timers() {
    let (early, late) = (EventLoop.Timer(on: loop), EventLoop.Timer(on: loop))
    let seen = Notes<String>()
    let now = Clock.monotonic()
    late.start(at: now + 30_000_000) { seen.add(Clock.monotonic() >= now + 30_000_000 ? "late" : "too early") }
    early.start(at: now + 10_000_000) { seen.add(Clock.monotonic() >= now + 10_000_000 ? "early" : "too early") }
    #expect(eventually { seen.all == ["early", "late"] })
  }

  @Test("a new start replaces the earlier one, and stop cancels it")
  func timerReplaced() {
    let (timer, other) = (EventLoop.Timer(on: loop), EventLoop.Timer(on: loop))
    let seen = Notes<String>()
    let now = Clock.monotonic()
    timer.start(at: now + 10_000_000) { seen.add("replaced") }
    timer.start(at: now + 40_000_000) { seen.add("second") }
    other.start(at: now + 20_000_000) { seen.add("stopped") }
    other.stop()
    #expect(eventually { seen.all == ["second"] })
    settle()
    #expect(seen.all == ["second"])
  }

  @Test("a timer that starts itself again at once does not keep descriptors waiting")
  func timerStartsItself() throws {
    let pair = Pair()
    let timer = EventLoop.Timer(on: loop)
    let seen = Flag()
    let isOver = Flag()
    let again = Restart(timer, isOver)
    let registration = try loop.register(pair.near, .readable) { _ in
      pair.take()
      seen.set()
    }
    again.start()
    #expect(eventually { again.count.value.load(ordering: .relaxed) > 0 })
    pair.send()
    #expect(eventually { seen.isSet })
    isOver.set()
    registration.remove()
  }

  private final class Restart: Sendable {
    let count = Counter()
    private let timer: EventLoop.Timer
    private let isOver: Flag
    init(_ timer: EventLoop.Timer, _ isOver: Flag) {
      self.timer = timer
      self.isOver = isOver
    }
    func start() {
      timer.start(at: 0) { [self] in
        count.value.add(1, ordering: .relaxed)
        if !isOver.isSet { start() }
      }
    }
  }

  // MARK: Jobs

  @Test("a job that is scheduled several times before it runs, runs once; jobs run in order")
  func jobs() {
    let seen = Notes<Int>()
    let jobs = (0..<3).map { _ in EventLoop.Job(on: loop) }
    for (number, job) in jobs.enumerated() { job.onRun { seen.add(number) } }
    loop.perform {
      for job in jobs { job.schedule() }
      for job in jobs { job.schedule() }
    }
    settle()
    #expect(seen.all == [0, 1, 2])
    jobs[1].schedule()
    settle()
    #expect(seen.all == [0, 1, 2, 1])
  }

  @Test("a job that is scheduled while it runs, runs again")
  func scheduledWhileItRuns() {
    let job = EventLoop.Job(on: loop)
    let (began, goOn) = (Semaphore(), Semaphore())
    let runs = Counter()
    job.onRun {
      began.signal()
      goOn.wait()
      runs.value.add(1, ordering: .releasing)
    }
    job.schedule()
    began.wait()
    job.schedule()
    goOn.signal()
    goOn.signal()
    #expect(eventually { runs.value.load(ordering: .acquiring) == 2 })
  }

  // MARK: The thread

  @Test("a signal does not end the loop's wait")
  func interrupted() throws {
    Thread.installKick()
    let pair = Pair()
    let threads = Notes<pthread_t>()
    loop.perform { threads.add(pthread_self()) }
    let seen = Flag()
    let registration = try loop.register(pair.near, .readable) { _ in
      pair.take()
      seen.set()
    }
    for _ in 0..<20 {
      pthread_kill(threads.all[0], SIGUSR1)
      usleep(1000)
    }
    pair.send()
    #expect(eventually { seen.isSet })
    registration.remove()
  }

  @Test("stop runs a job that another job scheduled before the end")
  func stopRunsTheLastJobs() throws {
    let (loop, pair, seen) = (loop, Pair(), Notes<String>())
    let (first, last) = (EventLoop.Job(on: loop), EventLoop.Job(on: loop))
    let (began, goOn) = (Semaphore(), Semaphore())
    last.onRun { seen.add("last") }
    first.onRun {
      last.schedule()
      began.signal()
      goOn.wait()
    }
    first.schedule()
    began.wait()
    let stopper = try Thread(name: "stopper") { loop.stop() }
    // The loop refuses registrations once its end has begun.
    #expect(eventually { (try? loop.register(pair.near, []) { _ in }) == nil })
    goOn.signal()
    stopper.join()
    #expect(seen.all == ["last"])
  }

  @Test("stop runs the scheduled jobs; afterwards nothing is registered, scheduled or called")
  func stopped() throws {
    let pair = Pair()
    let seen = Notes<String>()
    let job = EventLoop.Job(on: loop)
    let timer = EventLoop.Timer(on: loop)
    let registration = try loop.register(pair.near, .readable) { _ in seen.add("event") }
    timer.start(at: Clock.monotonic() + 20_000_000) { seen.add("timer") }
    job.onRun { seen.add("job") }
    job.schedule()
    loop.stop()
    #expect(seen.all == ["job"])
    pair.send()
    job.schedule()
    timer.start(at: 0) { seen.add("timer") }
    usleep(30_000)
    #expect(seen.all == ["job"])
    #expect(throws: SystemError("epoll_ctl", code: ECANCELED)) { try loop.register(pair.near, []) { _ in } }
    loop.perform { seen.add("performed here") }
    #expect(seen.all == ["job", "performed here"])
    registration.remove()
    loop.stop()
  }

  @Test("a handler that blocks does not hold up stop(patience:), nor a later remove")
  func blocked() throws {
    let pair = Pair()
    let (began, end) = (Semaphore(), Semaphore())
    let registration = try loop.register(pair.near, .readable) { _ in
      began.signal()
      end.wait()
    }
    pair.send()
    began.wait()
    #expect(!loop.stop(patience: 1))
    registration.remove()
    end.signal()
  }

  @Test("the loop may be released by one of its own handlers")
  func releasedByAHandler() throws {
    let pair = Pair()
    let released = Semaphore()
    let holder = LoopHolder(try EventLoop(name: "released"))
    let registration = try holder.loop.withLock { loop in
      try loop?.register(pair.near, .readable) { _ in
        pair.take()
        holder.loop.withLock { $0 = nil }
        released.signal()
      }
    }
    pair.send()
    released.wait()
    registration?.remove()
  }

  private final class LoopHolder: Sendable {
    let loop: Mutex<EventLoop?>
    init(_ loop: EventLoop) { self.loop = Mutex(loop) }
  }
}

private final class Counter: Sendable {
  let value = Atomic<Int>(0)
}

private final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  func set() { value.store(true, ordering: .releasing) }
  var isSet: Bool { value.load(ordering: .acquiring) }
}
