import Linux
import Synchronization

/// A bounded buffer of bytes for a file of the host that may be slow: callers append bytes without waiting, and a
/// thread writes them.
final class ChardevOutputBuffer: Sendable {
  /// The open file that gets the bytes. A socket has one for each client.
  final class Target: Sendable {
    let file: FileDescriptor
    init(_ file: consuming FileDescriptor) { self.file = file }
  }

  private struct State {
    /// The waiting bytes, without those that the thread is writing now.
    var bytes: [UInt8] = []
    /// The number of bytes accepted, and the number of these that were written or dropped. The others are waiting.
    var accepted: UInt64 = 0
    var gone: UInt64 = 0
    var target: Target?
    var stopping = false
    /// Whether a caller of `writeWaiting` waits for room.
    var hasWaiter = false
    /// The value of `gone` at which `onRoom` is called; nil if no caller needs room.
    var roomAt: UInt64?
    var onRoom: (@Sendable () -> Void)?

    var waiting: Int { Int(accepted - gone) }

    /// Appends bytes.
    /// - Returns: whether the caller must wake the thread.
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

  private let state: Mutex<State>
  private let event: EventDescriptor
  /// Signalled when there is room again, if a caller of `writeWaiting` waits for it.
  private let room: EventDescriptor
  private let thread = Mutex<Thread?>(nil)

  init(to target: Target?) throws(SystemError) {
    event = try EventDescriptor()
    room = try EventDescriptor()
    state = Mutex(State(target: target))
    let started = try Thread(name: "chardev output") { [self] in run() }
    thread.withLock { $0 = started }
  }

  /// Sets the handler that is called when the buffer accepts bytes again after it has refused some, or when `isBehind`
  /// has become false. The writing thread or the caller of `setTarget` calls the handler, with no lock held. `onRoom`
  /// itself calls the handler once, too.
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
      if state.target == nil || bytes.isEmpty { return (true, false) }
      guard state.waiting + bytes.count <= Self.limit else {
        state.refuse()
        return (false, false)
      }
      return (true, state.append(bytes))
    }
    if wakes { event.signal() }
    return fits
  }

  /// Takes all bytes without waiting, however full the buffer is.
  /// - Returns: the position of their end, for `isBehind`.
  func send(_ bytes: [UInt8]) -> UInt64 {
    let (end, wakes) = state.withLock { state in
      let wakes = state.target == nil ? false : state.append(bytes)
      return (state.accepted, wakes)
    }
    if wakes { event.signal() }
    return end
  }

  /// Returns whether more than `answerLead` of the bytes up to `end` are unwritten. If so, the handler of `onRoom` is
  /// called when that changes.
  func isBehind(_ end: UInt64) -> Bool {
    state.withLock { state in
      guard state.target != nil, state.gone + Self.answerLead < end else { return false }
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
        if state.target == nil || state.stopping { return (-1, false) }
        let piece = rest.prefix(max(0, Self.limit - state.waiting))
        let wakes = state.append(piece)
        state.hasWaiter = piece.count < rest.count
        if state.hasWaiter { state.refuse() }
        return (piece.count, wakes)
      }
      if taken < 0 { return false }
      if wakes { event.signal() }
      rest = rest.dropFirst(taken)
      if !rest.isEmpty { room.wait() }
    }
    return true
  }

  /// Sets the target of the next bytes; nil drops them. Drops the remaining bytes of the earlier target.
  func setTarget(_ target: Target?) {
    change { state in
      if state.target !== target {
        state.bytes = []
        state.gone = state.accepted
      }
      state.target = target
    }
    room.signal()
  }

  /// Ends the thread after it has written the remaining bytes. It waits only for a limited time, because a write to a
  /// terminal may block although poll reported room.
  func stop() {
    state.withLock { $0.stopping = true }
    event.signal()
    room.signal()
    thread.withLock { thread in
      thread?.join(patience: UInt32(Self.patience))
      thread = nil
    }
    state.withLock { $0.onRoom = nil }
  }

  private func run() {
    while true {
      event.wait()
      let (bytes, target, stopping) = state.withLock { state in
        defer { state.bytes = [] }
        return (state.bytes, state.target, state.stopping)
      }
      if let target { drain(bytes, to: target) }
      if stopping { return }
    }
  }

  private func drain(_ bytes: [UInt8], to target: Target) {
    var done = 0
    while done < bytes.count {
      if Poll.writable(target.file.rawValue, milliseconds: Self.patience) {
        guard let count = try? target.file.writeSome(bytes, from: done) else {
          return finish(bytes.count - done, for: target)
        }
        done += count
        finish(count, for: target)
      } else if state.withLock({ $0.stopping || $0.target !== target }) {
        return
      }
    }
  }

  /// Counts bytes that were written or dropped.
  private func finish(_ count: Int, for target: Target) {
    // `setTarget` has counted the bytes of an earlier target.
    change { state in if state.target === target { state.gone += UInt64(count) } }
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
