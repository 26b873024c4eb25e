import Linux
import Synchronization

/// Connects a qtest session to a chardev. Between `pause` and `resume`, the client's commands wait, like stopped CPUs.
///
/// Lock order: `execution`, which is held while a command is carried out, then the locks that a CPU's access takes.
/// `sending` is held while text is sent, and has no order with the other locks: a thread that may hold another lock
/// only tries `sending`, and leaves its news to the thread that holds `sending`. `pause` takes `execution`, so a thread
/// that carries out a command must call `requestPause` instead.
final class QTestServer: ChardevFrontend {
  private struct Client {
    var lines = QTestLines(limit: QTestSession.longestLine)
    /// The time when the client connected, in nanoseconds of the monotonic clock.
    var begin = Clock.monotonic()
  }

  private let device: Chardev
  private let log: QTestLog?
  private let session: QTestSession
  private let execution = Mutex<Void>(())
  private let sending = Mutex<Void>(())
  private let isRunning = Atomic<Bool>(false)
  private let isStopped = Atomic<Bool>(false)
  /// Signalled when `isRunning` or `isStopped` has changed, or the log accepts commands again.
  private let changed: EventDescriptor
  /// Used only on the chardev's thread.
  private let client = Mutex(Client())

  /// - Parameter clock: the clock that the client advances; nil if time passes by itself.
  init(
    on device: Chardev, log: QTestLog?, board: Board, clock: SteppedClock?
  ) throws(StartError) {
    self.device = device
    self.log = log
    do {
      changed = try EventDescriptor()
    } catch {
      throw .system(error)
    }
    session = QTestSession(board: board, clock: clock)
    session.onNews { [weak self] in self?.sendNews() }
    log?.onRoom { [weak self] in self?.changed.signal() }
    try device.attach(self)
  }

  // MARK: Calls of the machine

  func resume() {
    isRunning.store(true, ordering: .releasing)
    changed.signal()
  }

  /// Makes commands wait soon. May be called on any thread.
  func requestPause() { isRunning.store(false, ordering: .releasing) }

  /// Makes commands wait, and returns when none is being carried out.
  func pause() {
    requestPause()
    execution.withLock { _ in }
  }

  /// Ends the session: no command is carried out after this. The machine stops the chardev later.
  func stop() {
    isStopped.store(true, ordering: .releasing)
    changed.signal()
    pause()
  }

  // MARK: Calls of the chardev

  /// A command waits for `resume`, and its answer waits for a slow client.
  var mayBlock: Bool { true }

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
        // If the client has disconnected, the answer is lost.
        _ = send(session.takeNews() + unsent) { device.writeWaiting($0) }
      }
      sendNews()
    }
    return bytes.count
  }

  private var time: UInt64 { Clock.monotonic() - client.withLock { $0.begin } }

  /// Carries out a command as soon as the session is running. Sends the answer under the same lock if that does not
  /// block, so that a command that ends the machine is answered before the machine ends.
  /// - Returns: text that the caller must still send; nil if the session has ended.
  private func carryOut(_ piece: QTestLines.Piece) -> [UInt8]? {
    guard case .line(let line) = piece else { return Array((QTestSession.text(of: .tooLong) + "\n").utf8) }
    while let log, !log.writeCommand(at: time, Array(line) + [UInt8(ascii: "\n")]) {
      if isStopped.load(ordering: .acquiring) { return nil }
      waitForChange()
    }
    while !isStopped.load(ordering: .acquiring) {
      let unsent: [UInt8]? = execution.withLock { _ in
        guard isRunning.load(ordering: .acquiring) else { return nil }
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

  /// Sends the session's news in order. Does not block, because the caller may hold devices' locks.
  private func sendNews() {
    while session.hasNews {
      // If another thread is sending, that thread calls this when it is done.
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
