import Linux
import Synchronization

/// Bytes on their way to a host's file that may be slow: whoever writes leaves them here and goes on, a thread
/// writes them. It holds a limited number.
final class ChardevOutputBuffer: Sendable {
  /// What is open at the moment; a socket's clients come and go.
  final class Target: Sendable {
    let file: FileDescriptor
    init(_ file: consuming FileDescriptor) { self.file = file }
  }

  private struct State {
    /// Bytes that wait, without those that the thread is writing now.
    var bytes: [UInt8] = []
    /// How many bytes have come, and how many of them have been written or dropped: what is between them waits.
    var accepted: UInt64 = 0
    var gone: UInt64 = 0
    var target: Target?
    var stopping = false
    /// Whether somebody waits for room.
    var hasWaiter = false
    /// The value of `gone` at which `onRoom` is called; nil while nothing waits for room.
    var roomAt: UInt64?
    var onRoom: (@Sendable () -> Void)?

    var waiting: Int { Int(accepted - gone) }

    /// - Returns: whether the thread has to be woken.
    mutating func append(_ new: some Collection<UInt8>) -> Bool {
      defer { bytes += new }
      accepted += UInt64(new.count)
      return bytes.isEmpty && !new.isEmpty
    }

    mutating func awaitRoom(at position: UInt64) { roomAt = min(roomAt ?? .max, position) }

    /// What was refused is taken again once half of it has gone: room comes in large pieces.
    mutating func refuse() { awaitRoom(at: accepted - min(accepted, UInt64(ChardevOutputBuffer.limit / 2))) }
  }

  /// In bytes.
  static let limit = 1 << 20
  /// How many bytes up to an answer's end may be unread before the next answer waits.
  static let answerLead: UInt64 = 1 << 16
  /// How long the rest may take at the end, in milliseconds.
  private static let patience: Int32 = 1000

  private let state: Mutex<State>
  private let event: EventDescriptor
  /// Signalled when there is room again, if somebody waits for it.
  private let room: EventDescriptor
  private let thread = Mutex<Thread?>(nil)

  init(to target: Target?) throws(SystemError) {
    event = try EventDescriptor()
    room = try EventDescriptor()
    state = Mutex(State(target: target))
    let started = try Thread(name: "chardev output") { [self] in run() }
    thread.withLock { $0 = started }
  }

  /// Sets what to call when bytes that were refused would be taken, or `isBehind` has changed: from the thread that
  /// writes, or the one that sets the target, with no lock held. It is called from here, too.
  func onRoom(_ handler: (@Sendable () -> Void)?) {
    state.withLock { $0.onRoom = handler }
    handler?()
  }

  /// Takes one byte without waiting. Without a reader the byte is dropped.
  /// - Returns: false where there is no room, and the byte is not taken.
  func write(_ byte: UInt8) -> Bool { write(CollectionOfOne(byte)) }

  /// Takes all of it or none. It does not wait.
  /// - Returns: whether there was room. Where nobody is there to get it, it is taken and dropped.
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

  /// Takes all of it, whatever waits already. It does not wait.
  /// - Returns: its end, for `isBehind`.
  func send(_ bytes: [UInt8]) -> UInt64 {
    let (end, wakes) = state.withLock { state in
      let wakes = state.target == nil ? false : state.append(bytes)
      return (state.accepted, wakes)
    }
    if wakes { event.signal() }
    return end
  }

  /// Whether more than `answerLead` of the bytes up to `end` are unread. If so, `onRoom` is called when that changes.
  func isBehind(_ end: UInt64) -> Bool {
    state.withLock { state in
      guard state.target != nil, state.gone + Self.answerLead < end else { return false }
      state.awaitRoom(at: end - Self.answerLead)
      return true
    }
  }

  /// Takes all of it, waiting for room.
  /// - Returns: false if whoever was to get it has gone, or it is the end.
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

  /// Where bytes go from now on; nil drops them. What is left of those for the one before is dropped.
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

  /// Writes what is left, within reason, and ends. A write to a terminal may block although poll reported room.
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

  /// Bytes have been written or dropped.
  private func finish(_ count: Int, for target: Target) {
    // `setTarget` has counted the bytes of an earlier target.
    change { state in if state.target === target { state.gone += UInt64(count) } }
  }

  /// Changes `gone`, and wakes what waits for that.
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
