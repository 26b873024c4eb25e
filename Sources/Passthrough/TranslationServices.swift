import Hardware
import PCI

/// Address Translation Services and page requests of a passed-through function (PCI Express Base, section 10.5), as far
/// as the guest sees them. Only the host's kernel writes the device's own registers. The guest's writes stay in the
/// function's configuration space in Nestling, where the guest reads them back.
/// `OfferedPASIDs` is the third capability of shared virtual memory. Software enables PASID first, then ATS, then PRI.
struct TranslationServices: OptionSet, Hashable, Sendable {
  let rawValue: Int

  /// ATS. The guest's unit supports device-TLB invalidations.
  static let addressTranslation = TranslationServices(rawValue: 1 << 0)
  /// PRI. The host passes page requests on to Nestling.
  static let pageRequests = TranslationServices(rawValue: 1 << 1)

  /// The size of the longest of these capabilities, in bytes.
  static let room = 16

  func shows(_ id: UInt16) -> Bool {
    switch id {
    case AddressTranslationControl.id: contains(.addressTranslation)
    case PageRequestControl.id: contains(.pageRequests)
    default: false
    }
  }

  /// Returns a capability's registers: the features are those of the device; all other fields belong to the guest and
  /// have their values after a reset.
  /// - Parameters:
  ///   - host: the device's configuration space.
  ///   - offset: the offset of the capability, which has `room` bytes.
  /// - Returns: nil for any other capability.
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

/// The user's choices about the capabilities that the guest sees of a passed-through function.
public struct CapabilityChoices: Hashable, Sendable {
  /// `ats`: whether the guest sees ATS, and with it page requests. With true, the device is refused if it cannot. Nil
  /// shows ATS if that is possible.
  public var addressTranslation: Bool?
  /// `x-vpasid-cap-offset`: the offset of the PASID capability; nil to find one.
  public var pasidOffset: Int?

  public init(addressTranslation: Bool? = nil, pasidOffset: Int? = nil) {
    self.addressTranslation = addressTranslation
    self.pasidOffset = pasidOffset
  }
}

/// The reason why a guest cannot see ATS of a function.
public enum AddressTranslationProblem: Hashable, Sendable {
  /// No unit with device TLBs is in front of the function.
  case unit
  /// The host's IOMMU has no device TLBs, or the host's kernel does not use them for the device.
  case host
  /// The device has no ATS.
  case device
}

extension ConfigurationLayout {
  /// - Parameter offset: the first byte after the capability's header.
  mutating func define(_ capability: ExtendedCapability, at offset: Int) {
    for (index, byte) in capability.body.enumerated() {
      space.define(
        offset + index, byte, writable: index < capability.writable.count ? capability.writable[index] : 0,
        writeOneToClear: index < capability.writeOneToClear.count ? capability.writeOneToClear[index] : 0)
    }
  }
}
