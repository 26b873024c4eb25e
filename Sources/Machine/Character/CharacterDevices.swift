import Linux

/// The character devices of a machine, by their ids.
final class CharacterDevices: Sendable {
  let all: [CharacterDevice]

  /// Opens them in the order given.
  init(
    _ options: [any CharacterOptions], interpreter: any InputInterpreter, interruption: Int32,
    onExit: @escaping @Sendable () -> Void
  ) throws(StartError) {
    var devices: [CharacterDevice] = []
    for options in options {
      do {
        devices.append(
          try CharacterDevice(options, interpreter: interpreter, interruption: interruption, onExit: onExit))
      } catch {
        for device in devices { device.stop() }
        throw .file(option: "-chardev \(type(of: options).kindName),id=\(options.id?.text ?? "")", error)
      }
    }
    all = devices
  }

  func device(_ id: Identifier) throws(StartError) -> CharacterDevice {
    guard let device = all.first(where: { $0.options.id == id }) else {
      throw .device(kind: "chardev", problem: "chardev \"\(id)\" not found")
    }
    return device
  }

  func start() throws(SystemError) { for device in all { try device.start() } }

  /// Of those that never started, too.
  func stop() { for device in all { device.stop() } }
}
