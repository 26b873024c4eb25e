import Devices
import Hardware
import Synchronization

/// A byte sink that records the bytes, and accepts no more than it has room for.
final class RecordingOutput: ChardevOutput {
  private let log = Mutex<(bytes: [UInt8], room: Int)>(([], .max))

  var bytes: [UInt8] { log.withLock { $0.bytes } }
  var room: Int {
    get { log.withLock { $0.room } }
    set { log.withLock { $0.room = newValue } }
  }
  func write(_ byte: UInt8) -> Bool {
    log.withLock { log in
      guard log.room > 0 else { return false }
      log.room -= 1
      log.bytes.append(byte)
      return true
    }
  }
}

/// Records every change of a wire's level, which starts low.
final class LevelLog: InterruptLine {
  private let log = Mutex<[Bool]>([])

  var levels: [Bool] { log.withLock { $0 } }
  var rises: Int { levels.count { $0 } }
  func set(_ asserted: Bool) {
    log.withLock { log in
      if log.last ?? false != asserted { log.append(asserted) }
    }
  }
}

/// Collects the values that a closure was called with.
final class Calls<Value: Sendable>: Sendable {
  private let log = Mutex<[Value]>([])

  var values: [Value] { log.withLock { $0 } }
  func append(_ value: Value) { log.withLock { $0.append(value) } }
}

/// A clock that a test moves.
final class TestClock<Time: Sendable>: Sendable {
  private let time: Mutex<Time>

  init(_ time: Time) { self.time = Mutex(time) }

  var now: Time {
    get { time.withLock { $0 } }
    set { time.withLock { $0 = newValue } }
  }
}

extension BusDevice {
  func readByte(_ offset: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: read(offset: offset, width: .byte)) }
  func writeByte(_ offset: UInt64, _ value: UInt8) { write(offset: offset, width: .byte, value: UInt64(value)) }
}
