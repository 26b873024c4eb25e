import Devices
import Glibc
import Linux
import Synchronization

/// Entropy from getrandom(2), which does not block once the host has booted.
final class HostEntropy: EntropySource {
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int { RandomSource.fill(&bytes, count: count) }

  func onReady(_ handler: @escaping @Sendable () -> Void) {}
}

/// Entropy from a file of the host: /dev/urandom, a generator's device, a FIFO that a daemon feeds. A thread reads the
/// file when a request needs bytes, and reads only as many bytes. Only this thread waits for the file. A FIFO without a
/// writer, a file at its end or a file that fails is read again every 100 ms while a request needs bytes.
final class FileEntropy: EntropySource {
  /// The state that the thread and the source share. The thread does not keep the source alive.
  ///
  /// Lock order: code that holds its lock takes no other lock; the handler is called without it.
  private final class Reading: Sendable {
    private struct State {
      /// Bytes read and not taken yet.
      var bytes: [UInt8] = []
      /// The number of bytes that a request waits for; 0 if no request waits.
      var wanted = 0
      var handler: (@Sendable () -> Void)?
    }

    /// The pause after a read without bytes, in milliseconds.
    private static let pause: Int32 = 100

    let file: FileDescriptor
    let ended: EventDescriptor
    let asked: EventDescriptor
    private let state = Mutex(State())

    init(opening path: String) throws(SystemError) {
      file = try FileDescriptor(openingSource: path)
      ended = try EventDescriptor()
      asked = try EventDescriptor()
    }

    func onReady(_ handler: @escaping @Sendable () -> Void) { state.withLock { $0.handler = handler } }

    func take(_ count: Int, into bytes: inout [UInt8]) -> Int {
      let taken = state.withLock { state in
        let taken = min(count, state.bytes.count)
        if taken > 0 {
          bytes.replaceSubrange(..<taken, with: state.bytes.prefix(taken))
          state.bytes.removeFirst(taken)
        } else {
          state.wanted = count
        }
        return taken
      }
      if taken == 0 { asked.signal() }
      return taken
    }

    func run() {
      while true {
        let wanted = state.withLock { $0.wanted }
        let ready = Poll.readable([ended.rawValue, wanted > 0 ? file.rawValue : asked.rawValue])
        if ready[0] { return }
        guard wanted > 0 else {
          asked.take()
          continue
        }
        guard let bytes = try? file.read(count: wanted), !bytes.isEmpty else {
          if Poll.readable([ended.rawValue], milliseconds: Self.pause)[0] { return }
          continue
        }
        let handler = state.withLock { state in
          state.bytes = bytes
          state.wanted = 0
          return state.handler
        }
        handler?()
      }
    }
  }

  private let reading: Reading

  init(opening path: String) throws(SystemError) {
    let reading = try Reading(opening: path)
    self.reading = reading
    // The thread ends with this object, or with the process if its read does not return.
    _ = try Thread(name: "entropy") { reading.run() }
  }

  deinit { reading.ended.signal() }

  func take(_ count: Int, into bytes: inout [UInt8]) -> Int { reading.take(count, into: &bytes) }

  func onReady(_ handler: @escaping @Sendable () -> Void) { reading.onReady(handler) }
}
