import Linux
import Synchronization

/// The character devices of a machine, by their ids: those of the command line, and those that monitors add later.
///
/// Lock order: its lock is taken before a device's. Devices are opened and stopped without it.
public final class Chardevs: Sendable {
  /// The reason why a device cannot be added or removed while the machine runs.
  public enum Problem: Error, Hashable, Sendable {
    case duplicateID(Identifier)
    case notFound(String)
    case inUse(String)
    case notOpened(Identifier, SystemError)
    /// The machine has ended.
    case ended
  }

  private struct State {
    var devices: [Chardev]
    /// Ids of devices that are being opened.
    var reserved: Set<Identifier> = []
    var hasEnded = false
  }

  private let loop: EventLoop
  private let state: Mutex<State>
  /// Cancels the waits of devices that are being opened.
  private let end: EventDescriptor

  /// Opens the devices in the order given.
  init(
    _ options: [any ChardevOptions], on loop: EventLoop, interpreter: any InputInterpreter, interruption: Int32,
    onExit: @escaping @Sendable () -> Void
  ) throws(StartError) {
    self.loop = loop
    end = try mapError(try EventDescriptor(), StartError.system)
    var devices: [Chardev] = []
    for options in options {
      do {
        devices.append(
          try Chardev(options, on: loop, interpreter: interpreter, interruption: interruption, onExit: onExit))
      } catch {
        for device in devices { device.stop() }
        throw .file(option: "-chardev \(type(of: options).typeName),id=\(options.id?.text ?? "")", error)
      }
    }
    state = Mutex(State(devices: devices))
  }

  var all: [Chardev] { state.withLock { $0.devices } }

  func device(_ id: Identifier) throws(StartError) -> Chardev {
    guard let device = all.first(where: { $0.options.id == id }) else { throw .chardev(.notFound(id)) }
    return device
  }

  func start() throws(SystemError) { for device in all { try device.start() } }

  /// Stops all devices, including those that never started.
  func stop() {
    let devices = state.withLock { state in
      state.hasEnded = true
      return state.devices
    }
    end.signal()
    for device in devices { device.stop() }
  }

  /// Opens one more device, without a frontend. It may wait for a server, a client or the reader of a FIFO, until the
  /// machine ends.
  public func add(_ options: any ChardevOptions, id: Identifier) throws(Problem) {
    try state.withLock { (state) throws(Problem) in
      if state.hasEnded { throw .ended }
      if state.reserved.contains(id) || state.devices.contains(where: { $0.options.id == id }) {
        throw .duplicateID(id)
      }
      state.reserved.insert(id)
    }
    var options = options
    options.id = id
    let device: Chardev
    do {
      device = try Chardev(options, on: loop, interruption: end.rawValue)
    } catch {
      state.withLock { _ = $0.reserved.remove(id) }
      throw .notOpened(id, error)
    }
    let hasEnded = state.withLock { state in
      state.reserved.remove(id)
      if !state.hasEnded { state.devices.append(device) }
      return state.hasEnded
    }
    if hasEnded {
      device.stop()
      throw .ended
    }
  }

  /// Closes a device without a frontend.
  public func remove(_ name: String) throws(Problem) {
    let device = try state.withLock { (state) throws(Problem) in
      guard let index = state.devices.firstIndex(where: { $0.options.id?.text == name }) else {
        throw .notFound(name)
      }
      if state.devices[index].hasFrontend { throw .inUse(name) }
      return state.devices.remove(at: index)
    }
    device.stop()
  }
}
