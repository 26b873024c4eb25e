// The translation of a source's requests: the mode from the unit's registers, and the paging tables that a checked
// context entry or PASID-table entry selects (VT-d 3.4.3 to 3.4.5, 3.9).

/// The translation mode that the unit's registers select.
struct TranslationMode: Hashable, Sendable {
  /// RTADDR.TTM.
  enum TableMode: Hashable, Sendable {
    case legacy, scalable, invalid

    init(field: UInt64) {
      self =
        switch field {
        case 0: .legacy
        case 1: .scalable
        default: .invalid  // Reserved, and abort-DMA, which ECAP does not offer.
        }
    }
  }

  var enabled = false
  var rootTable: UInt64 = 0
  var tableMode = TableMode.legacy

  /// The fault of a request to the interrupt address range that is not an interrupt request.
  var interruptAddressFault: FaultReason { tableMode == .legacy ? .interruptAddress : .scalableInterruptAddress }
  /// The fault of a pass-through request beyond the host address width.
  var addressWidthFault: FaultReason { tableMode == .legacy ? .addressBeyondWidth : .scalableAddressBeyondWidth }
}

/// The paging tables of a source's requests.
enum TranslationPath: Sendable {
  /// No entry is cached.
  case unknown
  case passThrough(domain: UInt16)
  /// The first stage. In nested translation the table contains the second stage.
  case first(FirstStageTable, IOTLB.Tag)
  case second(SecondStageTable, IOTLB.Tag)

  /// The IOTLB tag of pages cached for this path.
  @inline(__always)
  var tag: IOTLB.Tag? {
    switch self {
    case .first(_, let tag), .second(_, let tag): tag
    case .unknown, .passThrough: nil
    }
  }

  var domain: UInt16? {
    switch self {
    case .unknown: nil
    case .passThrough(let domain): domain
    case .first(_, let tag), .second(_, let tag): tag.domain
    }
  }

  /// - Throws: condition LCT.4: the entry requests a feature that the unit does not offer.
  init(_ entry: ContextEntry, _ capabilities: Capabilities) throws(FaultReason) {
    // Pass-through requires a valid width, too (VT-d 9.3).
    guard let levels = capabilities.secondStageLevels(addressWidthField: entry.addressWidthField) else {
      throw .contextEntryInvalid
    }
    switch entry.translationType {
    case .passThrough where capabilities.passThrough:
      self = .passThrough(domain: entry.domain)
    case .untranslatedOnly,
      .deviceTLB where capabilities.deviceTLB:
      self = .second(
        SecondStageTable(root: entry.secondStagePointer, levels: levels, isScalable: false),
        IOTLB.Tag(domain: entry.domain, pasid: 0, stages: .second))
    default:
      throw .contextEntryInvalid
    }
  }

  /// - Throws: condition SPT.4: the entry requests a feature that the unit does not offer; or SPT.6: the entry does not
  ///   enable supervisor requests.
  init(
    _ entry: PASIDEntry, pasid: UInt32, isSupervisor: Bool, _ capabilities: Capabilities
  ) throws(FaultReason) {
    switch entry.translationType {
    case .passThrough where capabilities.passThrough:
      self = .passThrough(domain: entry.domain)
    case .firstStage where capabilities.firstStage:
      self = .first(
        try Self.firstStage(entry, isSupervisor: isSupervisor, nested: nil, capabilities),
        IOTLB.Tag(domain: entry.domain, pasid: pasid, stages: .first))
    case .secondStage where capabilities.scalableSecondStage:
      self = .second(
        try Self.secondStage(entry, capabilities),
        IOTLB.Tag(domain: entry.domain, pasid: pasid, stages: .second))
    case .nested where capabilities.nested:
      let second = try Self.secondStage(entry, capabilities)
      self = .first(
        try Self.firstStage(entry, isSupervisor: isSupervisor, nested: second, capabilities),
        IOTLB.Tag(domain: entry.domain, pasid: pasid, stages: .both))
    default:
      throw .pasidEntryInvalid
    }
  }

  private static func firstStage(
    _ entry: PASIDEntry, isSupervisor: Bool, nested: SecondStageTable?, _ capabilities: Capabilities
  ) throws(FaultReason) -> FirstStageTable {
    let levels: Int
    switch entry.firstStagePagingMode {
    case 0: levels = 4
    case 1 where capabilities.firstStageFiveLevels: levels = 5
    default: throw .pasidEntryInvalid
    }
    if isSupervisor, !entry.supervisorRequestEnable { throw .supervisorRequestNotEnabled }
    var controls: FirstStageTable.Controls = []
    if entry.writeProtectEnable { controls.insert(.writeProtect) }
    if entry.extendedAccessedFlagEnable { controls.insert(.extendedAccessed) }
    if entry.pageWalkSnoop { controls.insert(.pageWalkSnoop) }
    if entry.executeRequestEnable { controls.insert(.executeRequests) }
    if entry.noExecuteEnable { controls.insert(.noExecute) }
    if entry.supervisorExecutionPrevention { controls.insert(.supervisorExecutionPrevention) }
    if isSupervisor { controls.insert(.supervisor) }
    return FirstStageTable(root: entry.firstStagePointer, levels: levels, controls: controls, nested: nested)
  }

  private static func secondStage(
    _ entry: PASIDEntry, _ capabilities: Capabilities
  ) throws(FaultReason) -> SecondStageTable {
    guard let levels = capabilities.secondStageLevels(addressWidthField: entry.addressWidthField) else {
      throw .pasidEntryInvalid
    }
    return SecondStageTable(
      root: entry.secondStagePointer, levels: levels, isScalable: true,
      accessedDirty: entry.secondStageAccessedDirty, pageWalkSnoop: entry.pageWalkSnoop)
  }
}
