import Hardware

/// A capability of the list at 0x100: PCI Express Base 7.6.3. It defines the bits that software may change; the
/// function's model acts on the writes.
public struct ExtendedCapability: Hashable, Sendable {
  public let id: UInt16
  public let version: UInt8
  /// The bytes after the four bytes of the header.
  public var body: [UInt8]
  /// The RW bits of the body; missing bytes are read-only.
  public var writable: [UInt8] = []
  /// The RW1C bits of the body; missing bytes have none.
  public var writeOneToClear: [UInt8] = []

  /// Returns Access Control Services (ACS; 7.7.11).
  /// - Parameter offered: bits of the ACS Capability register; the same bits of ACS Control are writable.
  public static func accessControl(_ offered: AccessControl) -> ExtendedCapability {
    let bits = [UInt8](littleEndian: offered.rawValue)
    return ExtendedCapability(
      id: AccessControl.id, version: 1, body: bits + [0, 0], writable: [0, 0] + bits)
  }

  /// Advanced Error Reporting of a root port (AER; 7.8.4): all registers with their defaults. Links of this model have
  /// no errors. Version 2 has the TLP Prefix Log, which a port with end-end prefixes needs.
  public static var rootPortErrorReporting: ExtendedCapability {
    let uncorrectable: UInt32 = 0x003f_f030
    let correctable: UInt32 = 0x31c1
    var body = [UInt8](repeating: 0, count: 0x48 - 4)
    var writable = body
    var clearable = body
    clearable.store(uncorrectable, at: 0x04 - 4)
    writable.store(uncorrectable, at: 0x08 - 4)
    writable.store(uncorrectable, at: 0x0c - 4)
    // Fatal by default: data link protocol, surprise down, flow control, receiver overflow, malformed TLP.
    body.store(UInt32(0x0006_2030), at: 0x0c - 4)
    clearable.store(correctable, at: 0x10 - 4)
    writable.store(correctable, at: 0x14 - 4)
    // Advisory Non-Fatal Error Mask.
    body.store(UInt32(1) << 13, at: 0x14 - 4)
    // Root Error Command and Status.
    writable.store(UInt32(0x7), at: 0x2c - 4)
    clearable.store(UInt32(0x7f), at: 0x30 - 4)
    return ExtendedCapability(id: 0x0001, version: 2, body: body, writable: writable, writeOneToClear: clearable)
  }

  /// Returns Address Translation Services (ATS; 10.5.1) with page-aligned requests, but without Global Invalidate and
  /// without relaxed ordering.
  /// - Parameter invalidateQueueDepth: the number of invalidate requests that the function can hold, 1 to 32.
  public static func addressTranslation(invalidateQueueDepth: Int) -> ExtendedCapability {
    precondition((1...32).contains(invalidateQueueDepth), "the depth of the invalidate queue is 1 to 32")
    // Page Aligned Request; 0 encodes a depth of 32.
    let capability = UInt16(invalidateQueueDepth % 32) | 1 << 5
    return ExtendedCapability(
      id: AddressTranslationControl.id, version: 1, body: [UInt8](littleEndian: capability) + [0, 0],
      writable: [0, 0] + [UInt8](littleEndian: AddressTranslationControl.writable))
  }

  /// Returns the Page Request Interface (PRI; 10.5.2).
  /// - Parameter capacity: Outstanding Page Request Capacity.
  public static func pageRequest(capacity: UInt32) -> ExtendedCapability {
    let status = PageRequestStatus([.stopped, .responsePASIDRequired])
    let body = [UInt8](littleEndian: UInt16(0), status.rawValue, capacity, UInt32(0))
    let writable = [UInt8](littleEndian: PageRequestControl.enable.rawValue, UInt16(0), UInt32(0), UInt32.max)
    let failures = PageRequestStatus([.responseFailure, .unexpectedGroupIndex])
    let clearable = [UInt8](littleEndian: UInt16(0), failures.rawValue)
    return ExtendedCapability(
      id: PageRequestControl.id, version: 1, body: body, writable: writable, writeOneToClear: clearable)
  }

  /// Returns Process Address Space ID (PASID; 7.8.9).
  /// - Parameters:
  ///   - width: Max PASID Width, 1 to 20 bits.
  ///   - features: Execute Permission Supported and Privileged Mode Supported, as the bits of PASID Control that they
  ///     make writable.
  public static func processAddressSpace(
    width: Int, features: ProcessAddressSpaceControl = [.executePermission, .privilegedMode]
  ) -> ExtendedCapability {
    precondition((1...20).contains(width), "a PASID has 1 to 20 bits")
    // The two bits have the same places in the capability register and in the control register.
    let features = features.intersection([.executePermission, .privilegedMode])
    return ExtendedCapability(
      id: ProcessAddressSpaceControl.id, version: 1,
      body: [UInt8](littleEndian: UInt16(width) << 8 | features.rawValue) + [0, 0],
      writable: [0, 0] + [UInt8](littleEndian: features.union(.enable).rawValue))
  }
}

/// ACS Capability, and ACS Control with the same bits: 7.7.11.2.
public struct AccessControl: OptionSet, Hashable, Sendable {
  public static let id: UInt16 = 0x000d

  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }

  public static let sourceValidation = AccessControl(rawValue: 1 << 0)
  public static let translationBlocking = AccessControl(rawValue: 1 << 1)
  public static let requestRedirect = AccessControl(rawValue: 1 << 2)
  public static let completionRedirect = AccessControl(rawValue: 1 << 3)
  public static let upstreamForwarding = AccessControl(rawValue: 1 << 4)
  public static let directTranslated = AccessControl(rawValue: 1 << 6)
}

/// ATS Control, at 6 in its capability: 10.5.1.3.
public struct AddressTranslationControl: RawRepresentable, Hashable, Sendable {
  public static let id: UInt16 = 0x000f
  public static let offset = 0x06
  static let writable: UInt16 = 0x801f

  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// Whether the function may cache translations (E).
  public var isEnabled: Bool { rawValue[bit: 15] }
  /// Smallest Translation Unit (STU): log2 of the smallest number of bytes in a translation or an invalidation, 12 or
  /// more.
  public var smallestTranslationShift: Int { 12 + Int(rawValue[bits: 0...4]) }
}

/// Page Request Control, at 4 in its capability: 10.5.2.2.
public struct PageRequestControl: OptionSet, Hashable, Sendable {
  public static let id: UInt16 = 0x0013
  public static let offset = 0x04
  /// Offsets of Outstanding Page Request Capacity and Outstanding Page Request Allocation.
  public static let capacityOffset = 0x08
  public static let allocationOffset = 0x0c

  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// The function may send page requests (E).
  public static let enable = PageRequestControl(rawValue: 1 << 0)
  /// Drops the outstanding requests if written while page requests are not enabled (R). Reads as zero.
  public static let reset = PageRequestControl(rawValue: 1 << 1)
}

/// Page Request Status, at 6 in its capability: 10.5.2.3.
public struct PageRequestStatus: OptionSet, Hashable, Sendable {
  public static let offset = 0x06

  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }

  public static let responseFailure = PageRequestStatus(rawValue: 1 << 0)
  /// Unexpected Page Request Group Index.
  public static let unexpectedGroupIndex = PageRequestStatus(rawValue: 1 << 1)
  /// Page requests are not enabled, and none is outstanding.
  public static let stopped = PageRequestStatus(rawValue: 1 << 8)
  /// PRG Response PASID Required.
  public static let responsePASIDRequired = PageRequestStatus(rawValue: 1 << 15)
}

/// PASID Control, at 6 in its capability: 7.8.9.3.
public struct ProcessAddressSpaceControl: OptionSet, Hashable, Sendable {
  public static let id: UInt16 = 0x001b
  public static let offset = 0x06

  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }

  public static let enable = ProcessAddressSpaceControl(rawValue: 1 << 0)
  public static let executePermission = ProcessAddressSpaceControl(rawValue: 1 << 1)
  public static let privilegedMode = ProcessAddressSpaceControl(rawValue: 1 << 2)
}
