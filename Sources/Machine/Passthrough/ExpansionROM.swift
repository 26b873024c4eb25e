import Hardware
import Linux
import PCI
import Synchronization
import VFIO

/// What the guest finds where it places the Expansion ROM Base Address register (PCI Express Base 7.5.1.2.4) of a
/// passed-through function: the device's own ROM, or a file's content in its place. Nothing runs it here, as there is no
/// firmware; drivers of the guest read it.
///
/// Lock order: its lock is held while the device's ROM is read, once.
final class ExpansionROM: Sendable {
  /// Where it comes from (`rombar=`, `romfile=`).
  enum Source: Hashable, Sendable {
    case device
    case file([UInt8])
    case nowhere
  }

  /// The most that the register can have.
  static let limit = 1 << 24

  /// Of the register: a power of two.
  let size: UInt64
  private let read: @Sendable () -> [UInt8]
  /// nil until somebody wants to know.
  private let bytes = Mutex<[UInt8]?>(nil)

  /// - Returns: nil where there is none.
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
      // Slow, and some devices do not survive it: not before somebody wants to know.
      read = { device.contents(of: region, limit: Self.limit) }
    }
    guard count > 0, count <= Self.limit else { return nil }
    var size: UInt64 = 2048
    while size < count { size *= 2 }
    self.size = size
  }

  /// All ones behind the content's end.
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

  /// Reads a file that stands for a ROM.
  static func content(ofFile path: String) throws(SystemError) -> [UInt8] {
    let file = try FileDescriptor(openingSource: path)
    var bytes: [UInt8] = []
    while bytes.count <= limit, let more = try file.read(count: 1 << 16), !more.isEmpty { bytes += more }
    return bytes
  }
}
