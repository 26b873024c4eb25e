import Devices
import Linux
import Synchronization

/// Bytes on their way to a host file that may be slow: a vCPU leaves them here and goes on, a thread writes them.
///
/// A reader that does not read loses what is beyond the limit, as it would on a wire without flow control.
final class BufferedOutput: CharacterOutput {
  /// What is open at the moment; a socket comes and goes.
  final class Target: Sendable {
    let file: FileDescriptor
    init(_ file: consuming FileDescriptor) { self.file = file }
  }

  private struct State {
    var bytes: [UInt8] = []
    var target: Target?
    var stopping = false
  }

  /// In bytes.
  private static let limit = 1 << 20
  /// How long the rest may take when Nestling ends, in milliseconds.
  private static let patience: Int32 = 1000

  private let state: Mutex<State>
  private let event: EventDescriptor
  private let thread = Mutex<Thread?>(nil)

  init(to target: Target?) throws(SystemError) {
    event = try EventDescriptor()
    state = Mutex(State(target: target))
    let started = try Thread(name: "serial output") { [self] in run() }
    thread.withLock { $0 = started }
  }

  func write(_ byte: UInt8) {
    let wasEmpty = state.withLock { state in
      guard state.bytes.count < Self.limit else { return false }
      state.bytes.append(byte)
      return state.bytes.count == 1
    }
    if wasEmpty { event.signal() }
  }

  func write(_ text: String) { for byte in text.utf8 { write(byte) } }

  /// Where bytes go from now on; nil drops them.
  func setTarget(_ target: Target?) { state.withLock { $0.target = target } }

  /// Writes what is left, within reason, and ends.
  func stop() {
    state.withLock { $0.stopping = true }
    event.signal()
    thread.withLock { thread in
      thread?.join()
      thread = nil
    }
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
        guard let count = try? target.file.writeSome(bytes, from: done) else { return }
        done += count
      } else if state.withLock({ $0.stopping || $0.target !== target }) {
        return
      }
    }
  }
}
