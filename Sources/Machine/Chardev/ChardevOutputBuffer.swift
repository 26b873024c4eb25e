import Linux
import Synchronization

/// A bounded buffer of bytes for a file of the host that may be slow: callers append bytes without waiting, and a loop
/// writes them.
///
/// A write to standard output or to a disk may block. Such a file has a loop of its own, so that it delays only itself.
///
/// Lock order: `state` is a leaf. No handler is called while it is held.
final class ChardevOutputBuffer: Sendable {
  /// The open file that gets the bytes. A socket has one for each client.
  final class Target: Sendable {
    let file: FileDescriptor
    /// Whether a write may block, even when poll(2) reports room.
    let mayBlock: Bool

    init(_ file: consuming FileDescriptor, mayBlock: Bool = true) {
      self.file = file
      self.mayBlock = mayBlock
    }
  }

  /// A target as the loop writes to it. Its descriptor is a duplicate: the target's own may be registered for input
  /// with the same loop.
  private final class Outlet: Sendable {
    let target: Target
    let file: FileDescriptor
    let registration: EventLoop.Registration

    init(_ target: Target, on loop: EventLoop, _ onRoom: @escaping @Sendable () -> Void) throws(SystemError) {
      self.target = target
      file = try FileDescriptor(duplicating: target.file.rawValue)
      registration = try loop.register(file.rawValue, []) { _ in onRoom() }
    }

    // Before the descriptor is closed.
    deinit { registration.cancel() }
  }

  private enum Phase { case running, stopping, stopped }

  private struct State {
    /// The waiting bytes, without those that the loop is writing now.
    var bytes: [UInt8] = []
    /// The number of bytes accepted, and the number of these that were written or dropped. The others are waiting.
    var accepted: UInt64 = 0
    var gone: UInt64 = 0
    var outlet: Outlet?
    var phase = Phase.running
    /// Whether a caller of `writeWaiting` waits for room.
    var hasWaiter = false
    /// The value of `gone` at which `onRoom` is called; nil if no caller needs room.
    var roomAt: UInt64?
    var onRoom: (@Sendable () -> Void)?

    var waiting: Int { Int(accepted - gone) }

    /// Appends bytes.
    /// - Returns: whether the caller must schedule `job`.
    mutating func append(_ new: some Collection<UInt8>) -> Bool {
      defer { bytes += new }
      accepted += UInt64(new.count)
      return bytes.isEmpty && !new.isEmpty
    }

    mutating func awaitRoom(at position: UInt64) { roomAt = min(roomAt ?? .max, position) }

    /// Plans the call of `onRoom` for when half of the buffer is free, so that room comes in large pieces.
    mutating func refuse() { awaitRoom(at: accepted - min(accepted, UInt64(ChardevOutputBuffer.limit / 2))) }
  }

  /// The size of the buffer, in bytes.
  static let limit = 1 << 20
  /// The most bytes up to an answer's end that may be unwritten when the next answer is sent.
  static let answerLead: UInt64 = 1 << 16
  /// The longest time that `stop` waits for the rest of the output, in milliseconds.
  private static let patience: Int32 = 1000

  /// The number of writes after which the loop's other handlers get their turn.
  private static let writesPerTurn = 16

  private let state = Mutex(State())
  private let loop: EventLoop
  /// The loop, if it serves nothing else.
  private let ownLoop: EventLoop?
  /// Writes waiting bytes.
  private let job: EventLoop.Job
  private let batch = Mutex(Batch())
  /// Signalled when there is room again, if a caller of `writeWaiting` waits for it.
  private let room: EventDescriptor
  /// Signalled when all bytes are gone after `stop`.
  private let finished: EventDescriptor

  /// The bytes that the loop's thread is writing. No other thread uses them.
  private struct Batch {
    var bytes: [UInt8] = []
    /// The number of these bytes that are gone.
    var done = 0
    var outlet: Outlet?
  }

  /// - Parameter shared: writes the bytes if no write blocks; nil for a loop of its own in any case.
  init(to target: Target?, on shared: EventLoop? = nil) throws(SystemError) {
    room = try EventDescriptor()
    finished = try EventDescriptor()
    if let shared, target?.mayBlock != true {
      loop = shared
      ownLoop = nil
    } else {
      loop = try EventLoop(name: "chardev output")
      ownLoop = loop
    }
    job = EventLoop.Job(on: loop)
    job.onRun { [weak self] in self?.drain(hasRoom: false) }
    if let target { try setTarget(target) }
  }

  /// Sets the handler that is called when the buffer accepts bytes again after it has refused some, or when `isBehind`
  /// has become false. The loop's thread or the caller of `setTarget` calls the handler, with no lock held. `onRoom`
  /// itself calls the handler once, too. The handler must not block.
  func onRoom(_ handler: (@Sendable () -> Void)?) {
    state.withLock { $0.onRoom = handler }
    handler?()
  }

  /// Takes one byte without waiting. Without a target it drops the byte.
  /// - Returns: false if the buffer is full; then it does not take the byte.
  func write(_ byte: UInt8) -> Bool { write(CollectionOfOne(byte)) }

  /// Takes all bytes or none, without waiting.
  /// - Returns: whether there was room. Without a target it drops the bytes and returns true.
  func write(_ bytes: some Collection<UInt8>) -> Bool {
    let (fits, wakes) = state.withLock { state in
      if state.outlet == nil || bytes.isEmpty { return (true, false) }
      guard state.waiting + bytes.count <= Self.limit else {
        state.refuse()
        return (false, false)
      }
      return (true, state.append(bytes))
    }
    if wakes { job.schedule() }
    return fits
  }

  /// Takes all bytes without waiting, however full the buffer is.
  /// - Returns: the position of their end, for `isBehind`.
  func send(_ bytes: [UInt8]) -> UInt64 {
    let (end, wakes) = state.withLock { state in
      let wakes = state.outlet == nil ? false : state.append(bytes)
      return (state.accepted, wakes)
    }
    if wakes { job.schedule() }
    return end
  }

  /// Returns whether more than `answerLead` of the bytes up to `end` are unwritten. If so, the handler of `onRoom` is
  /// called when that changes.
  func isBehind(_ end: UInt64) -> Bool {
    state.withLock { state in
      guard state.outlet != nil, state.gone + Self.answerLead < end else { return false }
      state.awaitRoom(at: end - Self.answerLead)
      return true
    }
  }

  /// Takes all bytes. Waits for room.
  /// - Returns: false if the target is gone, or `stop` was called.
  func writeWaiting(_ bytes: [UInt8]) -> Bool {
    var rest = bytes[...]
    while !rest.isEmpty {
      let (taken, wakes) = state.withLock { state in
        if state.outlet == nil || state.phase != .running { return (-1, false) }
        let piece = rest.prefix(max(0, Self.limit - state.waiting))
        let wakes = state.append(piece)
        state.hasWaiter = piece.count < rest.count
        if state.hasWaiter { state.refuse() }
        return (piece.count, wakes)
      }
      if taken < 0 { return false }
      if wakes { job.schedule() }
      rest = rest.dropFirst(taken)
      if !rest.isEmpty { room.wait() }
    }
    return true
  }

  /// Sets the target of the next bytes; nil drops them. Drops the remaining bytes of the earlier target.
  func setTarget(_ target: Target?) throws(SystemError) {
    var outlet: Outlet?
    if let target {
      outlet = try Outlet(target, on: loop) { [weak self] in self?.drain(hasRoom: true) }
    }
    var former: Outlet?
    change { state in
      former = state.outlet
      state.bytes = []
      state.gone = state.accepted
      state.outlet = outlet
    }
    withExtendedLifetime(former) {}
    room.signal()
    // The loop releases the former target, which closes its file.
    job.schedule()
  }

  /// Writes the remaining bytes, within a limited time, and nothing afterwards.
  func stop() {
    let isFirst = state.withLock { state in
      defer { if state.phase == .running { state.phase = .stopping } }
      return state.phase == .running
    }
    guard isFirst else { return }
    room.signal()
    job.schedule()
    if !loop.isCurrent { _ = Poll.readable([finished.rawValue], milliseconds: Self.patience) }
    let outlet = state.withLock { state in
      state.phase = .stopped
      state.onRoom = nil
      return state.outlet
    }
    outlet?.registration.cancel()
    job.schedule()
    // The thread may still be blocked in a write, to a terminal for example.
    ownLoop?.stop(patience: 100)
  }

  // MARK: The loop's thread

  /// - Parameter hasRoom: whether the outlet has reported room. Without that, it does not write to a file that may
  ///   block.
  private func drain(hasRoom: Bool) {
    // The handler that `change` calls must not find the lock taken.
    var batch = self.batch.withLock { current in
      let batch = current
      current = Batch()
      return batch
    }
    defer { self.batch.withLock { $0 = batch } }
    var writes = 0
    while let outlet = next(&batch) {
      if writes == Self.writesPerTurn || outlet.target.mayBlock && !(hasRoom && writes == 0) {
        return outlet.registration.setInterest(.writable)
      }
      writes += 1
      // Bytes for a reader that is gone, or for a full disk, are dropped.
      let count = (try? outlet.file.writeSome(batch.bytes, from: batch.done)) ?? batch.bytes.count - batch.done
      if count == 0 { return outlet.registration.setInterest(.writable) }
      batch.done += count
      // `setTarget` has counted the bytes of an earlier target.
      change { state in if state.outlet === outlet { state.gone += UInt64(count) } }
    }
    batch.outlet?.registration.setInterest([])
  }

  /// Takes the waiting bytes once those of the batch are gone.
  /// - Returns: the outlet that gets the batch's next bytes; nil if there are none.
  private func next(_ batch: inout Batch) -> Outlet? {
    let former = batch.outlet
    // The lock is free when the former outlet is released.
    return withExtendedLifetime(former) {
      state.withLock { state in
        if state.phase == .stopped {
          batch = Batch()
          return nil
        }
        if batch.outlet !== state.outlet { batch = Batch(outlet: state.outlet) }
        if batch.done == batch.bytes.count {
          batch.bytes.removeAll(keepingCapacity: batch.bytes.capacity <= Self.answerLead)
          batch.done = 0
          swap(&batch.bytes, &state.bytes)
        }
        if !batch.bytes.isEmpty { return batch.outlet }
        if state.phase == .stopping { finished.signal() }
        return nil
      }
    }
  }

  /// Changes the state, then wakes the callers that wait for a value of `gone`.
  private func change(_ body: (inout State) -> Void) {
    let (handler, hasWaiter) = state.withLock { state -> ((@Sendable () -> Void)?, Bool) in
      body(&state)
      guard let position = state.roomAt, state.gone >= position else { return (nil, false) }
      defer { state.hasWaiter = false }
      state.roomAt = nil
      return (state.onRoom, state.hasWaiter)
    }
    if hasWaiter { room.signal() }
    handler?()
  }
}
