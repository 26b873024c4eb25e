import Devices
import Hardware
import PCI

/// `isa-debug-exit`: an I/O port. A write of VALUE ends Nestling with the exit status `VALUE << 1 | 1`.
///
/// QEMU's default ports are 0x501 and 0x502; Nestling's are the ports that test kernels request from QEMU.
public struct DebugExitOptions: DeviceOptions, Hashable {
  public var id: Identifier?
  /// The first port.
  public var base: UInt16 = 0xf4
  /// The number of ports.
  public var size: UInt16 = 4

  public init() {}

  public static let typeName = "isa-debug-exit"
  public static let summary = "Port by which a guest ends Nestling with a status"
  public static let bus = DeviceBus.isa
  public static let category = DeviceCategory.misc

  public static let properties: [Property<Self>] = [
    Property("iobase", \.base, help: "First port"),
    Property("iosize", \.size, .oneOf([1, 2, 4]), help: "Ports: 1, 2 or 4"),
  ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "iobase and iosize reach past port 0xffff") { Int($0.base) + Int($0.size) <= 0x10000 }
  ]
}

extension DebugExitOptions: BoardDevice {
  /// - Throws: `portsInUse`. The bus alone would let the earlier region answer, and the guest could not end Nestling.
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    let events = board.events
    let attachment = board.ioBus.attach(
      DebugExit { events.post(.debugExit(status: $0)) }, at: UInt64(base), size: UInt64(size))
    guard board.ioBus.visibleParts(of: attachment) == [0..<UInt64(size)] else {
      board.ioBus.detach(attachment)
      throw .portsInUse(first: base, count: size)
    }
    return []
  }
}
