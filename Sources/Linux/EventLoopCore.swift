import CLinux
import Glibc
import Synchronization

/// The part of a loop that its thread, registrations, timers and jobs share. The thread does not keep the loop alive.
final class EventLoopCore: Sendable {
  typealias Handler = @Sendable (EventLoop.Events) -> Void

  /// A scheduled handler.
  final class Work: Sendable {
    let handler = Mutex<(@Sendable () -> Void)?>(nil)
    let isScheduled = Atomic<Bool>(false)
  }

  private struct Slot {
    /// Counts the registrations that have used this slot, so that no late event reaches another registration.
    var generation: UInt32 = 0
    var descriptor: Int32 = -1
    var interest: EventLoop.Events = []
    /// Nil if the slot is free.
    var handler: Handler?
    /// Whether the file has no wait queue, so that epoll refuses it.
    var isAlwaysReady = false
  }

  private struct Timing {
    let number: UInt64
    let deadline: UInt64
    let handler: @Sendable () -> Void
  }

  private struct State {
    var slots: [Slot] = []
    var free: [Int] = []
    /// The keys of the registrations that are always ready and have an interest.
    var alwaysReady: [UInt64] = []
    /// In order of their deadlines. There are few, so a sorted array is enough.
    var timers: [Timing] = []
    var lastNumber: UInt64 = 0
    var scheduled: [Work] = []
    /// The key of the registration whose handler runs now.
    var running: UInt64?
    /// Threads in `remove` that wait for the running handler.
    var waiters: [Semaphore] = []
    var hasEnded = false

    /// Returns the slot of a registration; nil after its end.
    func index(of key: UInt64) -> Int? {
      let index = Int(key & 0xffff_ffff)
      guard index < slots.count, slots[index].generation == UInt32(key >> 32), slots[index].handler != nil else {
        return nil
      }
      return index
    }

    mutating func takeTimer(_ number: UInt64) -> Timing? {
      timers.firstIndex { $0.number == number }.map { timers.remove(at: $0) }
    }
  }

  private static let batch = 64
  /// The key of the event that wakes the thread. No slot has it.
  private static let wakeKey = UInt64.max

  private let epoll: FileDescriptor
  private let wake: EventDescriptor
  private let state = Mutex(State())
  /// The loop's thread (pthread_self(3)); 0 before it has started.
  private let thread = Atomic<UInt>(0)

  init() throws(SystemError) {
    epoll = FileDescriptor(owning: try checked(nestling_epoll_create(), "epoll_create1"))
    wake = try EventDescriptor()
    _ = try checked(
      nestling_epoll_control(
        epoll.rawValue, Int32(EPOLL_CTL_ADD), wake.rawValue, EventLoop.Events.readable.rawValue, Self.wakeKey),
      "epoll_ctl")
  }

  var isCurrent: Bool { thread.load(ordering: .acquiring) == pthread_self() }

  // MARK: Registrations

  /// - Returns: the registration's key.
  func add(
    _ descriptor: Int32, _ interest: EventLoop.Events, _ handler: @escaping Handler
  ) throws(SystemError) -> UInt64 {
    let result = state.withLock { state -> Result<UInt64, SystemError> in
      if state.hasEnded { return .failure(SystemError("epoll_ctl", code: ECANCELED)) }
      if state.free.isEmpty {
        state.free.append(state.slots.count)
        state.slots.append(Slot())
      }
      let index = state.free[state.free.count - 1]
      let key = Self.key(index, state.slots[index].generation)
      let answer = nestling_epoll_control(
        epoll.rawValue, Int32(EPOLL_CTL_ADD), descriptor, Self.mask(interest), key)
      if answer < 0, answer != -EPERM { return .failure(SystemError("epoll_ctl", code: -answer)) }
      state.free.removeLast()
      state.slots[index].descriptor = descriptor
      state.slots[index].handler = handler
      state.slots[index].isAlwaysReady = answer == -EPERM
      set(interest, key, index, &state)
      return .success(key)
    }
    return try result.get()
  }

  func setInterest(_ interest: EventLoop.Events, _ key: UInt64) {
    state.withLock { state in
      guard let index = state.index(of: key), state.slots[index].interest != interest else { return }
      set(interest, key, index, &state)
      guard !state.slots[index].isAlwaysReady else { return }
      // With valid arguments a change does not fail: it needs no memory (fs/eventpoll.c, ep_modify).
      _ = nestling_epoll_control(
        epoll.rawValue, Int32(EPOLL_CTL_MOD), state.slots[index].descriptor, Self.mask(interest), key)
    }
  }

  private func set(_ interest: EventLoop.Events, _ key: UInt64, _ index: Int, _ state: inout State) {
    state.slots[index].interest = interest
    guard state.slots[index].isAlwaysReady else { return }
    state.alwaysReady.removeAll { $0 == key }
    if !interest.isDisjoint(with: [.readable, .writable]) {
      state.alwaysReady.append(key)
      wakeThread()
    }
  }

  /// Epoll always reports EPOLLHUP and EPOLLERR. Without an interest, they must not be reported again and again, so the
  /// registration is edge-triggered meanwhile.
  private static func mask(_ interest: EventLoop.Events) -> UInt32 {
    interest.isEmpty ? EventLoop.Events.edgeTriggered.rawValue : interest.rawValue
  }

  private static func key(_ index: Int, _ generation: UInt32) -> UInt64 { UInt64(generation) << 32 | UInt64(index) }

  func cancel(_ key: UInt64) {
    // The lock is free when the handler is released: that may release the owner of another registration.
    withExtendedLifetime(state.withLock { state in take(key, &state) }) {}
  }

  func remove(_ key: UInt64) {
    let (handler, waiter) = state.withLock { state -> (Handler?, Semaphore?) in
      let handler = take(key, &state)
      guard state.running == key, !isCurrent else { return (handler, nil) }
      let waiter = Semaphore()
      state.waiters.append(waiter)
      return (handler, waiter)
    }
    withExtendedLifetime(handler) {}
    waiter?.wait()
  }

  private func take(_ key: UInt64, _ state: inout State) -> Handler? {
    guard let index = state.index(of: key) else { return nil }
    let slot = state.slots[index]
    if slot.isAlwaysReady {
      state.alwaysReady.removeAll { $0 == key }
    } else {
      _ = nestling_epoll_control(epoll.rawValue, Int32(EPOLL_CTL_DEL), slot.descriptor, 0, 0)
    }
    state.slots[index] = Slot(generation: slot.generation &+ 1)
    state.free.append(index)
    return slot.handler
  }

  // MARK: Timers

  func makeNumber() -> UInt64 {
    state.withLock { state in
      state.lastNumber += 1
      return state.lastNumber
    }
  }

  func start(_ number: UInt64, at deadline: UInt64, _ handler: @escaping @Sendable () -> Void) {
    let before = state.withLock { state -> Timing? in
      if state.hasEnded { return nil }
      let before = state.takeTimer(number)
      let index = state.timers.firstIndex { $0.deadline > deadline } ?? state.timers.count
      state.timers.insert(Timing(number: number, deadline: deadline, handler: handler), at: index)
      if index == 0 { wakeThread() }
      return before
    }
    withExtendedLifetime(before) {}
  }

  func stop(_ number: UInt64) { withExtendedLifetime(state.withLock { $0.takeTimer(number) }) {} }

  // MARK: Jobs

  /// - Returns: false if the loop has ended.
  @discardableResult
  func schedule(_ work: Work) -> Bool {
    if work.isScheduled.exchange(true, ordering: .acquiringAndReleasing) { return true }
    return state.withLock { state in
      if state.hasEnded { return false }
      state.scheduled.append(work)
      if state.scheduled.count == 1 { wakeThread() }
      return true
    }
  }

  /// The loop's thread looks at the state again before it waits.
  private func wakeThread() { if !isCurrent { wake.signal() } }

  // MARK: The thread

  func run() {
    thread.store(pthread_self(), ordering: .releasing)
    // SAFETY: freed at the end of this function, the only user.
    let events = UnsafeMutablePointer<epoll_event>.allocate(capacity: Self.batch)
    defer { unsafe events.deallocate() }
    var works: [Work] = []
    while let timeout {
      // SAFETY: the buffer has room for that many events, and the kernel writes `count` of them.
      let count = unsafe nestling_epoll_wait(epoll.rawValue, events, Int32(Self.batch), timeout)
      for index in 0..<max(0, Int(count)) {
        let event = unsafe events[index]
        if event.data == Self.wakeKey {
          wake.take()
        } else {
          deliver(EventLoop.Events(rawValue: event.events), event.data)
        }
      }
      deliverAlwaysReady()
      fireTimers()
      run(&works)
    }
    run(&works)
    thread.store(0, ordering: .releasing)
  }

  /// The longest wait for events, in milliseconds; -1 for no limit, nil if the loop ends.
  private var timeout: Int32? {
    state.withLock { state in
      if state.hasEnded { return nil }
      if !state.scheduled.isEmpty || !state.alwaysReady.isEmpty { return 0 }
      guard let first = state.timers.first else { return -1 }
      let now = Clock.monotonic()
      guard first.deadline > now else { return 0 }
      return Int32(clamping: (first.deadline - now - 1) / 1_000_000 + 1)
    }
  }

  private func deliver(_ events: EventLoop.Events, _ key: UInt64) {
    let (handler, events) = state.withLock { state -> (Handler?, EventLoop.Events) in
      guard let index = state.index(of: key), !state.slots[index].interest.isEmpty else { return (nil, []) }
      let wanted = events.intersection(state.slots[index].interest.union([.hungUp, .failed]))
      if wanted.isEmpty { return (nil, []) }
      state.running = key
      return (state.slots[index].handler, wanted)
    }
    guard let handler else { return }
    handler(events)
    let waiters = state.withLock { state -> [Semaphore] in
      state.running = nil
      if state.waiters.isEmpty { return [] }
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.signal() }
  }

  private func deliverAlwaysReady() {
    for key in state.withLock({ $0.alwaysReady }) { deliver([.readable, .writable], key) }
  }

  private func fireTimers() {
    // A handler may start its timer again at once, so the number of calls is bounded.
    for _ in 0..<state.withLock({ $0.timers.count }) {
      let due = state.withLock { state -> Timing? in
        guard let first = state.timers.first, first.deadline <= Clock.monotonic() else { return nil }
        return state.timers.removeFirst()
      }
      guard let due else { return }
      due.handler()
    }
  }

  /// Runs the jobs that are scheduled now. Those that they schedule wait for the next round.
  private func run(_ works: inout [Work]) {
    state.withLock { swap(&$0.scheduled, &works) }
    for work in works {
      // A call of `schedule` from now on makes the handler run again.
      work.isScheduled.store(false, ordering: .releasing)
      work.handler.withLock { $0 }?()
    }
    works.removeAll(keepingCapacity: true)
  }

  // MARK: The end

  func beginEnd() {
    state.withLock { $0.hasEnded = true }
    wake.signal()
  }

  /// Releases all handlers, and the threads that wait for one that blocks.
  func clear() {
    let (slots, timers, waiters) = state.withLock { state -> ([Slot], [Timing], [Semaphore]) in
      defer {
        for index in state.slots.indices { state.slots[index].handler = nil }
        state.timers = []
        state.waiters = []
        state.alwaysReady = []
        state.running = nil
      }
      return (state.slots, state.timers, state.waiters)
    }
    for waiter in waiters { waiter.signal() }
    withExtendedLifetime((slots, timers)) {}
  }
}
