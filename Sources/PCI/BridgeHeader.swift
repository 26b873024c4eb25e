import Hardware

/// A bridge's type 1 header (PCI Express Base 7.5.1.3): the numbers of the buses behind the bridge, and the addresses
/// that it forwards to those buses. A plain value, decoded from configuration space; any content of the registers is
/// valid.
public struct BridgeHeader: Equatable, Sendable {
  enum Offset {
    static let primaryBus = 0x18
    static let secondaryBus = 0x19
    static let subordinateBus = 0x1a
    static let ioBase = 0x1c
    static let ioLimit = 0x1d
    static let secondaryStatus = 0x1e
    static let memoryBase = 0x20
    static let memoryLimit = 0x22
    static let prefetchableBase = 0x24
    static let prefetchableLimit = 0x26
    static let prefetchableBaseUpper = 0x28
    static let prefetchableLimitUpper = 0x2c
    static let bridgeControl = 0x3e
  }

  /// Bits of Bridge Control (7.5.1.3.13).
  enum Control {
    static let parityErrorResponse: UInt16 = 1 << 0
    static let serrEnable: UInt16 = 1 << 1
    static let isaEnable: UInt16 = 1 << 2
    static let secondaryBusReset: UInt16 = 1 << 6
  }

  /// A range of addresses that the bridge forwards, from `base` to `limit` inclusive. Closed while `base > limit`.
  public struct Window: Hashable, Sendable {
    public let base: UInt64
    public let limit: UInt64

    func contains(_ first: UInt64, _ last: UInt64) -> Bool { base <= first && last <= limit }
  }

  public let primaryBus: UInt8
  public let secondaryBus: UInt8
  public let subordinateBus: UInt8
  let command: Command
  public let io: Window
  public let memory: Window
  public let prefetchable: Window
  /// Whether the bridge forwards only the first 256 bytes of each KiB of the I/O window.
  let isaEnable: Bool
  let secondaryBusReset: Bool

  public init(_ space: ConfigurationSpace) {
    func register<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type, _ offset: Int) -> UInt64 {
      UInt64(space.get(type, offset))
    }
    primaryBus = space.get(UInt8.self, Offset.primaryBus)
    secondaryBus = space.get(UInt8.self, Offset.secondaryBus)
    subordinateBus = space.get(UInt8.self, Offset.subordinateBus)
    command = Command(rawValue: space.get(UInt16.self, StandardOffset.command))
    io = Window(
      base: (register(UInt8.self, Offset.ioBase) & 0xf0) << 8,
      limit: (register(UInt8.self, Offset.ioLimit) & 0xf0) << 8 | 0xfff)
    memory = Window(
      base: (register(UInt16.self, Offset.memoryBase) & 0xfff0) << 16,
      limit: (register(UInt16.self, Offset.memoryLimit) & 0xfff0) << 16 | 0xf_ffff)
    prefetchable = Window(
      base: register(UInt32.self, Offset.prefetchableBaseUpper) << 32
        | (register(UInt16.self, Offset.prefetchableBase) & 0xfff0) << 16,
      limit: register(UInt32.self, Offset.prefetchableLimitUpper) << 32
        | (register(UInt16.self, Offset.prefetchableLimit) & 0xfff0) << 16 | 0xf_ffff)
    let control = space.get(UInt16.self, Offset.bridgeControl)
    isaEnable = control & Control.isaEnable != 0
    secondaryBusReset = control & Control.secondaryBusReset != 0
  }

  /// Returns whether a bus number is that of the bus directly below the bridge.
  func leads(to bus: UInt8) -> Bool { bus != 0 && bus == secondaryBus && bus <= subordinateBus }

  /// Returns whether a BAR lies completely in an open window. In this model, a BAR that lies partly outside does not
  /// decode at all.
  /// - Parameter size: in bytes, not zero; `base + size - 1` does not overflow.
  func forwards(_ space: BaseAddressRegister.Space, base: UInt64, size: UInt64) -> Bool {
    let last = base + (size - 1)
    guard space == .io else {
      return command.contains(.memorySpaceEnable) && (memory.contains(base, last) || prefetchable.contains(base, last))
    }
    return command.contains(.ioSpaceEnable) && io.contains(base, last)
      && (!isaEnable || (base & 0x300 == 0 && base & 0xff + size <= 0x100))
  }

  /// Defines the registers with their reset values: closed windows, bus numbers zero.
  static func define(in space: inout ConfigurationSpace) {
    space.define(StandardOffset.headerType, space.get(UInt8.self, StandardOffset.headerType) | 1)
    for offset in [Offset.primaryBus, Offset.secondaryBus, Offset.subordinateBus] {
      space.define(offset, UInt8(0), writable: 0xff)
    }
    // 16-bit I/O addresses.
    space.define(Offset.ioBase, UInt8(0xf0), writable: 0xf0)
    space.define(Offset.ioLimit, UInt8(0), writable: 0xf0)
    space.define(Offset.secondaryStatus, UInt16(0), writeOneToClear: 0xf900)
    space.define(Offset.memoryBase, UInt16(0xfff0), writable: 0xfff0)
    space.define(Offset.memoryLimit, UInt16(0), writable: 0xfff0)
    // 64-bit addresses.
    space.define(Offset.prefetchableBase, UInt16(0xfff1), writable: 0xfff0)
    space.define(Offset.prefetchableLimit, UInt16(1), writable: 0xfff0)
    space.define(Offset.prefetchableBaseUpper, UInt32(0), writable: .max)
    space.define(Offset.prefetchableLimitUpper, UInt32(0), writable: .max)
    space.define(
      Offset.bridgeControl, UInt16(0),
      writable: Control.parityErrorResponse | Control.serrEnable | Control.isaEnable | Control.secondaryBusReset)
  }
}
