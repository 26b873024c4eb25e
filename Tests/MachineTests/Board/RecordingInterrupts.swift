import Hardware
import Synchronization

@testable import Machine

/// Local APICs that only record the messages sent to them.
final class RecordingInterrupts: LocalInterrupts {
  private let messages = Mutex<[InterruptMessage]>([])

  private let levels = Mutex<[Int: InterruptMessage]>([:])

  /// The level-triggered pins' messages, by pin.
  var levelTriggered: [Int: InterruptMessage] { levels.withLock { $0 } }

  var sent: [InterruptMessage] { messages.withLock { $0 } }

  func send(_ message: InterruptMessage) { messages.withLock { $0.append(message) } }

  func makeVector() -> any MessageVector { Vector(owner: self) }

  func setLevelTriggered(pin: Int, _ message: InterruptMessage?) { levels.withLock { $0[pin] = message } }

  private final class Vector: MessageVector {
    private let owner: RecordingInterrupts
    private var message: InterruptMessage?

    init(owner: RecordingInterrupts) { self.owner = owner }

    func set(_ message: InterruptMessage) { self.message = message }

    func signal() { if let message { owner.send(message) } }
  }
}
