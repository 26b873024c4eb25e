import Linux
import Synchronization

/// Bytes on their way to a host's file that may be slow: whoever writes leaves them here and goes on, a thread
/// writes them. It holds a limited number.
final class CharacterOutputBuffer: Sendable {
  /// What is open at the moment; a socket's clients come and go.
  final class Target: Sendable {
    let file: FileDescriptor
    init(_ file: consuming FileDescriptor) { self.file = file }
  }

  private struct State {
    var bytes: [UInt8] = []
    var target: Target?
    var stopping = false
    /// Whether somebody waits for room.
    var hasWaiter = false
  }

  /// In bytes.
  static let limit = 1 << 20
  /// How long the rest may take when Nestling ends, in milliseconds.
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

  /// Takes one byte, or drops it where there is no room or nobody to get it. It does not wait.
  func write(_ byte: UInt8) {
    let wasEmpty = state.withLock { state in
      guard state.target != nil, state.bytes.count < Self.limit else { return false }
      state.bytes.append(byte)
      return state.bytes.count == 1
    }
    if wasEmpty { event.signal() }
  }

  /// Takes all of it or none. It does not wait.
  /// - Returns: whether there was room. Where nobody is there to get it, it is taken and dropped.
  func write(_ bytes: [UInt8]) -> Bool {
    let (fits, wasEmpty) = state.withLock { state in
      if state.target == nil || bytes.isEmpty { return (true, false) }
      guard state.bytes.count + bytes.count <= Self.limit else { return (false, false) }
      state.bytes += bytes
      return (true, state.bytes.count == bytes.count)
    }
    if wasEmpty { event.signal() }
    return fits
  }

  /// Takes all of it, waiting for room.
  /// - Returns: false if whoever was to get it has gone, or it is the end.
  func writeWaiting(_ bytes: [UInt8]) -> Bool {
    var rest = bytes[...]
    while !rest.isEmpty {
      let (taken, wasEmpty) = state.withLock { state in
        if state.target == nil || state.stopping { return (-1, false) }
        let count = min(rest.count, Self.limit - state.bytes.count)
        state.bytes += rest.prefix(count)
        state.hasWaiter = count < rest.count
        return (count, count > 0 && state.bytes.count == count)
      }
      if taken < 0 { return false }
      if wasEmpty { event.signal() }
      rest = rest.dropFirst(taken)
      if !rest.isEmpty { room.wait() }
    }
    return true
  }

  /// Where bytes go from now on; nil drops them. What is left of those for the one before is dropped.
  func setTarget(_ target: Target?) {
    state.withLock { state in
      if state.target !== target { state.bytes = [] }
      state.target = target
    }
    room.signal()
  }

  /// Writes what is left, within reason, and ends. A terminal may have room and hold the write of it all the same.
  func stop() {
    state.withLock { $0.stopping = true }
    event.signal()
    room.signal()
    thread.withLock { thread in
      thread?.join(patience: UInt32(Self.patience))
      thread = nil
    }
  }

  private func run() {
    while true {
      event.wait()
      let (bytes, target, stopping, hasWaiter) = state.withLock { state in
        defer {
          state.bytes = []
          state.hasWaiter = false
        }
        return (state.bytes, state.target, state.stopping, state.hasWaiter)
      }
      if hasWaiter { room.signal() }
      if let target { drain(bytes, to: target) }
      if stopping { return }
    }
  }

  private func drain(_ bytes: [UInt8], to target: Target) {
    var done = 0
    while done < bytes.count {
      if Poll.writable(target.file.rawValue, milliseconds: Self.patience) {
        guard let count = try? target.file.writeSome(bytes, from: done) else { return }
        done += count
      } else if state.withLock({ $0.stopping || $0.target !== target }) {
        return
      }
    }
  }
}
