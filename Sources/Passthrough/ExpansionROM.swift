import Hardware
import Linux
import PCI
import Synchronization
import VFIO

/// The expansion ROM of a passed-through function, at the guest's Expansion ROM Base Address (PCI Express Base
/// 7.5.1.2.4): the device's own ROM, or the content of a file instead. No firmware runs it here; the guest's drivers
/// read it.
///
/// Lock order: its lock is held while the device's ROM is read, once.
final class ExpansionROM: Sendable {
  /// The origin of the ROM (`rombar=`, `romfile=`).
  enum Source: Hashable, Sendable {
    case device
    case file([UInt8])
    case nowhere
  }

  /// The largest ROM that the register allows, in bytes.
  static let limit = 1 << 24

  /// The size that the register decodes: a power of two.
  let size: UInt64
  private let read: @Sendable () -> [UInt8]
  /// The content; nil until the guest reads it.
  private let bytes = Mutex<[UInt8]?>(nil)

  /// - Returns: nil if there is no ROM.
  init?(_ source: Source, of device: VFIODevice) throws(SystemError) {
    let count: UInt64
    switch source {
    case .nowhere: return nil
    case .file(let content):
      count = UInt64(content.count)
      read = { content }
    case .device:
      let region = try device.region(UInt32(BaseAddressRegister.expansionROMIndex))
      count = region.isReadable ? region.size : 0
      // Do not read the ROM yet: the read is slow, and some devices hang on it. The guest's first read triggers it.
      read = { device.contents(of: region, limit: Self.limit) }
    }
    guard count > 0, count <= Self.limit else { return nil }
    var size: UInt64 = 2048
    while size < count { size *= 2 }
    self.size = size
  }

  /// Reads the ROM; bytes beyond its end are all ones.
  func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    bytes.withLock { known in
      let bytes = known ?? read()
      known = bytes
      var value: UInt64 = 0
      for index in 0..<width.rawValue {
        let at = Int(clamping: offset) &+ index
        value |= UInt64(at >= 0 && at < bytes.count ? bytes[at] : 0xff) << UInt64(8 * index)
      }
      return value
    }
  }

  /// Reads the file of `romfile=`.
  static func content(ofFile path: String) throws(SystemError) -> [UInt8] {
    let file = try FileDescriptor(openingSource: path)
    var bytes: [UInt8] = []
    while bytes.count <= limit, let more = try file.read(count: 1 << 16), !more.isEmpty { bytes += more }
    return bytes
  }
}
