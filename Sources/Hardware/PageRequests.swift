// Messages of the Page Request Interface (PCI Express Base, section 10.4).

/// A Page Request message: PCI Express Base 10.4.1.
public struct PageRequest: Hashable, Sendable {
  /// The page's address; bits 11:0 are ignored.
  public var address: UInt64
  public var prefix: PASIDPrefix?
  public var reads: Bool
  public var writes: Bool
  /// L: whether this is the last request of its group. The response to the group follows the last request.
  public var isLastInGroup: Bool
  /// Page Request Group Index: 9 bits.
  public var groupIndex: UInt16

  public init(
    address: UInt64, prefix: PASIDPrefix?, reads: Bool, writes: Bool, isLastInGroup: Bool, groupIndex: UInt16
  ) {
    self.address = address
    self.prefix = prefix
    self.reads = reads
    self.writes = writes
    self.isLastInGroup = isLastInGroup
    self.groupIndex = groupIndex & 0x1ff
  }

  /// Returns the Stop Marker for a PASID: the function requests no more pages with this PASID (10.4.1.2). It has no
  /// response.
  public static func stopMarker(pasid: UInt32) -> PageRequest {
    PageRequest(
      address: 0, prefix: PASIDPrefix(pasid: pasid), reads: false, writes: false, isLastInGroup: true, groupIndex: 0)
  }

  public var isStopMarker: Bool { !reads && !writes && isLastInGroup && prefix != nil }
}

/// A PRG Response message: PCI Express Base 10.4.2.
public struct PageGroupResponse: Hashable, Sendable {
  public enum Code: UInt8, Sendable {
    case success = 0
    case invalidRequest = 1
    case responseFailure = 15

    /// Decodes the field. Reserved codes count as a failure.
    public init(field: UInt8) { self = Code(rawValue: field & 15) ?? .responseFailure }
  }

  public var code: Code
  public var groupIndex: UInt16
  public var pasid: UInt32?

  public init(code: Code, groupIndex: UInt16, pasid: UInt32?) {
    self.code = code
    self.groupIndex = groupIndex
    self.pasid = pasid
  }
}

/// The action of the root complex on a page request.
public enum PageRequestOutcome: Hashable, Sendable {
  /// The request is in the queue for software.
  case queued
  /// The root complex itself responds. It responds only to the last request of a group.
  case answered(PageGroupResponse.Code)
  /// The root complex drops the request, and no response follows.
  case discarded
}
