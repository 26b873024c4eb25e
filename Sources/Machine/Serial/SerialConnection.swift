import Devices
import Synchronization

/// Connects a serial port to a chardev.
final class SerialConnection: ChardevFrontend, ChardevOutput {
  private let device: Chardev
  private let port = Mutex<SerialPort?>(nil)

  init(to device: Chardev) throws(StartError) {
    self.device = device
    try device.attach(self)
  }

  var mayBlock: Bool { false }

  func write(_ byte: UInt8) -> Bool { device.write(byte) }

  /// Passes input to this port from now on. With nil, the chardev keeps its input.
  func connect(_ port: SerialPort?) {
    let before = self.port.withLock { current in
      defer { current = port }
      return current
    }
    before?.onReceiveRoom(nil)
    port?.onReceiveRoom { [device] in device.roomChanged() }
    device.roomChanged()
  }

  func receive(_ bytes: ArraySlice<UInt8>) -> Int {
    guard let port = port.withLock({ $0 }) else { return 0 }
    let taken = bytes.prefix(port.receiveRoom)
    port.receive(taken)
    return taken.count
  }
  func outputRoom() { port.withLock { $0 }?.outputRoom() }
  func connected() {}
  func disconnected() {}
}
