import Hardware
import PCI

/// The PASID capability of a passed-through function (PCI Express Base 7.8.9) as the guest sees it. VFIO hides the
/// device's own, which belongs to the host's kernel, so Nestling makes one from what the kernel reports.
struct OfferedPASIDs: Hashable, Sendable {
  /// Max PASID Width in bits: 1 to 20.
  let width: Int
  /// Execute Permission Supported and Privileged Mode Supported.
  let features: ProcessAddressSpaceControl
  /// The offset that the user chose (`x-vpasid-cap-offset`); nil to find one.
  let offset: Int?

  /// - Parameter width: in bits; more than 20 count as 20.
  /// - Returns: nil without any bits.
  init?(width: Int, features: ProcessAddressSpaceControl = [], offset: Int? = nil) {
    guard width > 0 else { return nil }
    self.width = min(width, 20)
    self.features = features
    self.offset = offset
  }

  /// The size of the capability in bytes.
  static let size = 8
  /// The offsets that the user can choose, of which each is a multiple of 4.
  static let offsets = 0x100...ConfigurationSpace.size - size

  var capability: ExtendedCapability { .processAddressSpace(width: width, features: features) }
}

/// The places in a host function's extended configuration space that are taken.
struct ExtendedSpaceRoom {
  /// The bytes of capabilities that the guest sees.
  private let shown: [Range<Int>]
  /// The bytes of all capabilities of the host.
  private let all: [Range<Int>]
  private let bytes: [UInt8]
  /// Whether the function has extended configuration space.
  let exists: Bool

  /// - Parameters:
  ///   - bytes: the host's configuration space, with 4096 bytes.
  ///   - size: the number of bytes that the host has: 256 or 4096.
  ///   - entries: the host's list at 0x100.
  ///   - isShown: whether the guest sees a capability.
  init(
    _ bytes: [UInt8], size: Int, entries: [(offset: Int, header: UInt32)], isShown: (Int) -> Bool
  ) {
    self.bytes = bytes
    exists = size >= ConfigurationSpace.size
    all = entries.map { Self.range(of: $0, among: entries, bytes) }
    shown = zip(entries, all).filter { isShown($0.0.offset) }.map(\.1)
  }

  /// Returns the bytes that a capability has. For an unknown one these are all up to the next capability, 256 at most.
  private static func range(
    of entry: (offset: Int, header: UInt32), among entries: [(offset: Int, header: UInt32)], _ bytes: [UInt8]
  ) -> Range<Int> {
    let offset = entry.offset
    let next = entries.map(\.offset).filter { $0 > offset }.min() ?? ConfigurationSpace.size
    let length =
      switch UInt16(truncatingIfNeeded: entry.header) {
      // Advanced Error Reporting, with the TLP Prefix Log; Device Serial Number.
      case 0x0001: 0x48
      case 0x0003: 0x0c
      // Vendor-Specific: VSEC Length.
      case 0x000b where offset + 8 <= bytes.count: Int(bytes.load(UInt32.self, at: offset + 4) >> 20)
      case AddressTranslationControl.id, ProcessAddressSpaceControl.id: 0x08
      case PageRequestControl.id: 0x10
      default: 0x100
      }
    return offset..<min(offset + max(length, 4), next, ConfigurationSpace.size)
  }

  /// Returns an offset for the PASID capability: the last one whose bytes are zero and belong to no capability of the
  /// host, as in QEMU at the end of the space if that is free. A hidden capability may use such bytes nevertheless; the
  /// user can then choose another offset.
  func freeOffset() -> Int? {
    // At 0x100 the list begins.
    stride(from: ConfigurationSpace.size - OfferedPASIDs.size, to: 0x100, by: -4).first { offset in
      let range = offset..<offset + OfferedPASIDs.size
      return !all.contains { $0.overlaps(range) } && range.allSatisfy { bytes[$0] == 0 }
    }
  }

  /// Whether the PASID capability at this offset would overlap another one that the guest sees.
  func collides(_ offset: Int) -> Bool {
    let range = offset..<offset + OfferedPASIDs.size
    return shown.contains { $0.overlaps(range) }
  }
}

/// The reason why the guest does not see the PASID capability of a function that has one.
enum PASIDCapabilityProblem: Hashable, Sendable {
  /// The function's PCI Express capability does not have Device Capabilities 2, without which no software enables
  /// PASIDs, or its extended configuration space is full or missing.
  case noRoom
  /// Another capability is at the offset that the user chose.
  case taken(Int)
}
