/// QEMU's educational device from its driver's side (docs/specs/edu.rst). It makes the requests that the unit
/// translates.

struct Edu {
  static let buffer: UInt64 = 0x40000
  private static let identity: UInt32 = 0x11e8_1234

  let function: Function
  private let base: UInt64

  /// Takes a function as edu and enables its memory decoding and bus mastering; nil if it is another device.
  init?(_ function: Function) {
    guard function.readPort(0) == Self.identity else { return nil }
    function.writePort(4, function.readPort(4) & 0xffff | 0x6)
    self.function = function
    base = UInt64(function.readPort(0x10) & ~0xf)
  }

  /// The same device after the guest has renumbered its bus.
  init(_ other: Edu, onBus bus: UInt32) {
    function = Function(device: other.function.device, number: other.function.number, bus: bus)
    base = other.base
  }

  /// Returns the first edu on bus 0 with a higher device number than `other`, or the first of all, with memory decoding
  /// and bus mastering enabled.
  static func find(after other: Edu? = nil) -> Edu? {
    for device in (other?.function.device ?? 0) + 1..<UInt32(31) {
      if let edu = Edu(Function(device: device, number: 0)) { return edu }
    }
    return nil
  }

  var source: UInt64 { UInt64(function.index) }
  var isAlive: Bool {
    store32(base + 4, 0x1357_9bdf)
    return load32(base) == 0x0100_00ed && load32(base + 4) == ~0x1357_9bdf
  }

  // MARK: DMA

  /// Runs one transfer.
  /// - Returns: whether the transfer completed. A transfer that the unit refuses also completes.
  private func transfer(from source: UInt64, to destination: UInt64, count: UInt64, command: UInt64) -> Bool {
    store64(base + 0x80, source)
    store64(base + 0x88, destination)
    store64(base + 0x90, count)
    store64(base + 0x98, command)
    return wait(ticks: RemappingUnit.patience) { load64(base + 0x98) & 1 == 0 }
  }

  /// Makes edu copy from memory to the start of its buffer.
  func read(from address: UInt64, count: UInt64 = 8) -> Bool {
    transfer(from: address, to: Self.buffer, count: count, command: 1)
  }

  /// Makes edu copy the start of its buffer, which holds the data of the last read, to memory.
  func write(to address: UInt64, count: UInt64 = 8) -> Bool {
    transfer(from: Self.buffer, to: address, count: count, command: 3)
  }

  /// Makes edu copy from memory to memory through its buffer.
  func copy(from source: UInt64, to destination: UInt64, count: UInt64 = 8) -> Bool {
    read(from: source, count: count) && write(to: destination, count: count)
  }

  /// Makes edu read, and checks that exactly this fault is recorded.
  func checkRead(_ name: StaticString, from address: UInt64, _ reason: UInt64) {
    _ = read(from: address)
    RemappingUnit.checkFault(name, reason: reason, source: source, low: address & ~0xfff, isRead: true)
  }

  /// Makes edu write, and checks that exactly this fault is recorded.
  func checkWrite(_ name: StaticString, to address: UInt64, _ reason: UInt64) {
    _ = write(to: address)
    RemappingUnit.checkFault(name, reason: reason, source: source, low: address & ~0xfff, isRead: false)
  }

  // MARK: Interrupts

  /// Makes edu assert its pin until `lowerPin`, or send its message if MSI is enabled.
  func raisePin() { store32(base + 0x60, 1) }
  func lowerPin() { store32(base + 0x64, 1) }

  /// Raises edu's interrupt and lowers it at once. With MSI, the message is sent once.
  func raise() {
    raisePin()
    lowerPin()
  }

  private var messageCapability: UInt32 {
    let messageSignalled: UInt32 = 0x05
    var capability = function.readPort(0x34) & 0xff
    while capability != 0, function.readPort(capability) & 0xff != messageSignalled {
      capability = function.readPort(capability) >> 8 & 0xff
    }
    return capability
  }

  /// Disables MSI, so that edu uses its pin again.
  func disableMessages() {
    let capability = messageCapability
    if capability != 0 { function.writePort(capability, function.readPort(capability) & ~0x0001_0000) }
  }

  /// Enables MSI with this message.
  func setMessage(address: UInt32, data: UInt32) {
    let capability = messageCapability
    guard capability != 0 else { return Report.fail("edu has no MSI capability") }
    function.writePort(capability, function.readPort(capability) & ~0x0001_0000)
    function.writePort(capability + 4, address)
    function.writePort(capability + 8, 0)
    function.writePort(capability + 12, data)
    function.writePort(capability, function.readPort(capability) | 0x0001_0000)
  }
}
