import Hardware
import Synchronization

/// The target of the two configuration mechanisms: ECAM (PCI Express Base 7.2.2), and the ports 0xCF8 and 0xCFC
/// (PCI Local Bus 3.0, section 3.2.2.3.2). Routes each access to the function with the address.
public struct ConfigurationTarget: Sendable {
  private let routes: BusRoutes

  public init(_ routes: BusRoutes) { self.routes = routes }

  /// Creates the target for a root complex without ports.
  public init(root: Bus) { self.init(BusRoutes(root: root)) }

  func read(_ id: RequesterID, _ offset: Int, _ width: AccessWidth) -> UInt64 {
    guard let function = routes.function(at: id) else { return width.allOnes }
    return function.readConfiguration(offset: offset, width: width)
  }

  func write(_ id: RequesterID, _ offset: Int, _ width: AccessWidth, _ value: UInt64) {
    guard let function = routes.function(at: id) else { return }
    function.writeConfiguration(offset: offset, width: width, value: value)
  }
}

/// Enhanced Configuration Access Mechanism: address bits 27:20 bus, 19:15 device, 14:12 function, 11:0 offset.
public final class EnhancedConfigurationAccess: BusDevice {
  /// The size of the region in bytes, for all 256 buses.
  public static let size: UInt64 = 256 << 20

  private let target: ConfigurationTarget

  public init(target: ConfigurationTarget) { self.target = target }

  private static func decode(_ offset: UInt64) -> (RequesterID, Int) {
    (RequesterID(rawValue: UInt16(truncatingIfNeeded: offset >> 12)), Int(offset & 0xfff))
  }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    let (id, register) = Self.decode(offset)
    guard register + width.rawValue <= ConfigurationSpace.size else { return width.allOnes }
    return target.read(id, register, width)
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    let (id, register) = Self.decode(offset)
    guard register + width.rawValue <= ConfigurationSpace.size else { return }
    target.write(id, register, width, value)
  }
}

/// CONFIG_ADDRESS at offset 0 (doubleword accesses only) and CONFIG_DATA at offset 4.
public final class PortConfigurationAccess: BusDevice {
  private let target: ConfigurationTarget
  private let address = Mutex<UInt32>(0)

  public init(target: ConfigurationTarget) { self.target = target }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    let address = self.address.withLock { $0 }
    if offset == 0, width == .doubleword { return UInt64(address) }
    guard let (id, register) = Self.decode(address, offset, width) else { return width.allOnes }
    return target.read(id, register, width)
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    if offset == 0, width == .doubleword {
      address.withLock { $0 = UInt32(truncatingIfNeeded: value) & 0x80ff_ffff }
      return
    }
    guard let (id, register) = Self.decode(address.withLock { $0 }, offset, width) else { return }
    target.write(id, register, width, value)
  }

  private static func decode(_ address: UInt32, _ offset: UInt64, _ width: AccessWidth) -> (RequesterID, Int)? {
    guard address[bit: 31], offset >= 4 else { return nil }
    let id = RequesterID(rawValue: UInt16(truncatingIfNeeded: address >> 8))
    // The port's bits 1:0 select the byte. The specification reserves those bits in CONFIG_ADDRESS, but QEMU combines
    // both, and libqos relies on that.
    let byte = Int((UInt64(address) | offset) & 3)
    guard byte + width.rawValue <= 4 else { return nil }
    return (id, Int(address & 0xfc) + byte)
  }
}
