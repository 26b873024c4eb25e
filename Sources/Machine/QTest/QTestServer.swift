import Linux
import Synchronization

/// A qtest session's place at a character device. Between `pause` and `resume` the client's commands wait, as a CPU
/// would.
///
/// Lock order: `execution`, held while a command is carried out, then everything that a CPU's access takes; `sending` is
/// apart from those, and whoever comes by while it is held leaves the news to its holder. `pause` takes `execution`, so
/// it is not for a thread that carries out a command; `requestPause` is.
final class QTestServer: ChardevFrontend {
  private struct Client {
    var lines = QTestLines(limit: QTestSession.longestLine)
    /// When it connected, in nanoseconds of the monotonic clock.
    var begin = Clock.monotonic()
  }

  private let device: Chardev
  private let log: QTestLog?
  private let session: QTestSession
  private let execution = Mutex<Void>(())
  private let sending = Mutex<Void>(())
  private let isOpen = Atomic<Bool>(false)
  private let ends = Atomic<Bool>(false)
  /// Signalled when one of the two has changed, or the log takes commands again.
  private let changed: EventDescriptor
  /// For the device's thread alone.
  private let client = Mutex(Client())

  /// - Parameter clock: what the client moves; nil where the CPUs have a time of their own.
  init(
    on device: Chardev, log: QTestLog?, board: Board, clock: SteppedClock?
  ) throws {
    self.device = device
    self.log = log
    changed = try EventDescriptor()
    session = QTestSession(board: board, clock: clock)
    session.onNews { [weak self] in self?.sendNews() }
    log?.onRoom { [weak self] in self?.changed.signal() }
    try device.attach(self)
  }

  // MARK: From the machine's side

  func resume() {
    isOpen.store(true, ordering: .releasing)
    changed.signal()
  }

  /// Has commands wait soon. From any thread.
  func requestPause() { isOpen.store(false, ordering: .releasing) }

  /// Returns when no command is being carried out.
  func pause() {
    requestPause()
    execution.withLock { _ in }
  }

  /// No command is carried out any more. The device ends after this.
  func stop() {
    ends.store(true, ordering: .releasing)
    changed.signal()
    pause()
  }

  // MARK: From the device's side

  func connected() {
    client.withLock { $0 = Client() }
    session.begin()
    log?.write("I", at: 0, Array("OPENED\n".utf8))
  }

  func disconnected() { log?.write("I", at: time, Array("CLOSED\n".utf8)) }

  func receive(_ bytes: ArraySlice<UInt8>) -> Int {
    client.withLock { $0.lines.append(bytes) }
    while let piece = client.withLock({ $0.lines.next() }) {
      guard let unsent = carryOut(piece) else { break }
      sending.withLock { _ in
        // Somebody who has gone misses the answer.
        _ = send(session.takeNews() + unsent) { device.writeWaiting($0) }
      }
      sendNews()
    }
    return bytes.count
  }

  private var time: UInt64 { Clock.monotonic() - client.withLock { $0.begin } }

  /// Carries out a command once that may be, and answers as far as that goes without waiting: a command that ends the
  /// machine is answered before the machine goes on to its end.
  /// - Returns: what is still to be sent; nil when the machine ends.
  private func carryOut(_ piece: QTestLines.Piece) -> [UInt8]? {
    guard case .line(let line) = piece else { return Array((QTestSession.text(of: .tooLong) + "\n").utf8) }
    while let log, !log.writeCommand(at: time, Array(line) + [UInt8(ascii: "\n")]) {
      if ends.load(ordering: .acquiring) { return nil }
      waitForChange()
    }
    while !ends.load(ordering: .acquiring) {
      let unsent: [UInt8]? = execution.withLock { _ in
        guard isOpen.load(ordering: .acquiring) else { return nil }
        let answer = session.execute(line)
        let sent = sending.withLockIfAvailable { _ -> Bool in
          guard !session.hasNews, device.write(answer) else { return false }
          log?.write("S", at: time, answer)
          return true
        }
        return sent == true ? [] : answer
      }
      if let unsent { return unsent }
      waitForChange()
    }
    return nil
  }

  private func waitForChange() {
    _ = Poll.readable([changed.rawValue])
    changed.take()
  }

  /// Sends what there is to tell, in order. It waits for nobody, as devices' locks may be held.
  private func sendNews() {
    while session.hasNews {
      // Whoever is sending now comes here when it is done.
      let sent = sending.withLockIfAvailable { _ in send(session.takeNews()) { device.write($0) } }
      if sent == nil { return }
    }
  }

  private func send(_ text: [UInt8], by write: ([UInt8]) -> Bool) -> Bool {
    if text.isEmpty { return true }
    log?.write("S", at: time, text)
    return write(text)
  }
}
