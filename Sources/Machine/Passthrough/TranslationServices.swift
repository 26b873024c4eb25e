import Hardware
import PCI

/// Address Translation Services and page requests of a passed-through function (PCI Express Base 10.5), as far as its
/// guest is to see them. The host's kernel has the device's own registers, and lets nobody write them: what the guest
/// writes stays in its view, and is read back there.
///
/// PASIDs are not among them: the host has the guest's table for requests without, and for PASID 0.
struct TranslationServices: OptionSet, Hashable, Sendable {
  let rawValue: Int

  /// ATS. The guest's unit has invalidations of device TLBs for it.
  static let addressTranslation = TranslationServices(rawValue: 1 << 0)
  /// PRI. The host hands page requests over.
  static let pageRequests = TranslationServices(rawValue: 1 << 1)

  /// Bytes of the longest of the capabilities.
  static let room = 16

  func shows(_ id: UInt16) -> Bool {
    switch id {
    case AddressTranslationControl.id: contains(.addressTranslation)
    case PageRequestControl.id: contains(.pageRequests)
    default: false
    }
  }

  /// A capability's registers: what it can do is the device's, the rest is as after a reset and the guest's.
  /// - Parameters:
  ///   - host: the device's configuration space.
  ///   - offset: of the capability, of which there are `room` bytes.
  /// - Returns: nil for a capability of another kind.
  static func registers(_ id: UInt16, host: [UInt8], at offset: Int) -> ExtendedCapability? {
    switch id {
    case AddressTranslationControl.id:
      var capability = ExtendedCapability.addressTranslation(invalidateQueueDepth: 32)
      capability.body.replaceSubrange(0..<2, with: host[offset + 4..<offset + 6])
      return capability
    case PageRequestControl.id:
      var capability = ExtendedCapability.pageRequest(
        capacity: host.load(UInt32.self, at: offset + PageRequestControl.capacityOffset))
      let status = PageRequestStatus(rawValue: host.load(UInt16.self, at: offset + PageRequestStatus.offset))
      capability.body.store(
        status.intersection(.responsePASIDRequired).union(.stopped).rawValue, at: PageRequestStatus.offset - 4)
      return capability
    default: return nil
    }
  }
}

extension ConfigurationLayout {
  /// - Parameter offset: of what follows the capability's header.
  mutating func define(_ capability: ExtendedCapability, at offset: Int) {
    for (index, byte) in capability.body.enumerated() {
      space.define(
        offset + index, byte, writable: index < capability.writable.count ? capability.writable[index] : 0,
        writeOneToClear: index < capability.writeOneToClear.count ? capability.writeOneToClear[index] : 0)
    }
  }
}
