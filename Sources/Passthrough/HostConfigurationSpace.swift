import Hardware
import PCI

/// A host function's configuration space as the guest sees it (PCI Express Base, sections 7.5 and 7.6): with the host's
/// layout, without capabilities that cannot be passed through, and for each bit whether the guest's accesses reach the
/// device.
///
/// VFIO protects the device. This type determines the accesses that the machine answers itself: those to BARs and
/// decoding, MSI and MSI-X, the place on the fabric, and power states, which the machine then sets in the device.
struct HostConfigurationSpace: Sendable {
  /// Identifiers of capabilities.
  private enum Identifier {
    static let powerManagement: UInt8 = 0x01
    static let vitalProductData: UInt8 = 0x03
    static let msi: UInt8 = 0x05
    static let vendor: UInt8 = 0x09
    static let express: UInt8 = 0x10
    static let msix: UInt8 = 0x11
    static let advancedFeatures: UInt8 = 0x13
    /// The extended capabilities that are passed through: errors, serial number, vendor-specific.
    static let extended: Set<UInt16> = [0x0001, 0x0003, 0x000b]
  }

  private(set) var given = ConfigurationLayout(space: ConfigurationSpace())
  private(set) var msix: MSIX.Layout?
  private(set) var msiVectorCount = 0
  /// The bits that are read from the device and written to it.
  private(set) var direct = [UInt8](repeating: 0, count: ConfigurationSpace.size)
  /// The Interrupt Pin of the host's header: 0 for none.
  let interruptPin: UInt8
  let header: [UInt8]
  /// The offsets of the capabilities of translation services that the guest sees, by identifier.
  private(set) var translationServices: [UInt16: Int] = [:]
  /// The offset of the PASID capability; nil if the guest sees none.
  private(set) var pasidOffset: Int?
  /// The reason why the guest does not see PASIDs that are offered.
  private(set) var pasidProblem: PASIDCapabilityProblem?
  /// Whether the device has page requests, even if the guest does not see them.
  private(set) var hasPageRequests = false
  private let services: TranslationServices
  private let pasids: OfferedPASIDs?
  /// The offset of Device Capabilities 2; nil if the function does not have it.
  private var deviceCapabilities2: Int?
  private let type: ExpressType
  /// Whether the device has Function Level Reset, in its PCI Express or Advanced Features capability.
  private(set) var hasFunctionLevelReset = false
  /// Whether the transition from D3hot to D0 resets the device (No_Soft_Reset is clear).
  private(set) var isResetByPowerStates = false
  private let offersReset: Bool

  /// - Parameters:
  ///   - bytes: the host's configuration space, 256 or 4096 bytes.
  ///   - type: the type of the function on the guest's fabric.
  ///   - services: the services that both the guest's unit and the host offer.
  ///   - pasids: the PASIDs that both offer; nil for none.
  ///   - offersReset: whether VFIO can reset the function alone. If so, the guest sees FLR, even if the device has
  ///     another kind of reset.
  init(
    _ bytes: [UInt8], type: ExpressType = .rootComplexIntegratedEndpoint, services: TranslationServices = [],
    pasids: OfferedPASIDs? = nil, offersReset: Bool = true
  ) {
    self.type = type
    self.services = services
    self.pasids = pasids
    self.offersReset = offersReset
    let size = bytes.count
    let bytes = bytes + [UInt8](repeating: 0, count: max(0, ConfigurationSpace.size - bytes.count))
    header = Array(bytes[..<0x40])
    interruptPin = min(bytes[StandardOffset.interruptPin], 4)
    // All bits of the status register come from the device, except Capabilities List.
    direct[StandardOffset.status] = 0xe8
    direct[StandardOffset.status + 1] = 0xff
    addCapabilities(bytes)
    addExtendedCapabilities(bytes, size: size)
  }

  // MARK: The list at 0x34

  private mutating func addCapabilities(_ bytes: [UInt8]) {
    var entries: [(offset: Int, id: UInt8)] = []
    var offset = Int(bytes[StandardOffset.capabilitiesPointer] & 0xfc)
    // A list with a loop ends at the first repeated offset.
    while offset >= 0x40, bytes[StandardOffset.status] & 0x10 != 0, !entries.contains(where: { $0.offset == offset }) {
      entries.append((offset, bytes[offset]))
      offset = Int(bytes[offset + 1] & 0xfc)
    }
    /// Returns the number of bytes from a capability to the next one.
    func room(at offset: Int) -> Int { (entries.map(\.offset).filter { $0 > offset }.min() ?? 0x100) - offset }

    var shown: [(offset: Int, id: UInt8)] = []
    for (offset, id) in entries where add(id, at: offset, room: room(at: offset), bytes) {
      shown.append((offset, id))
    }
    addMSI(entries, bytes, &shown)
    var pointer = StandardOffset.capabilitiesPointer
    for (offset, id) in shown {
      given.space.set(pointer, UInt8(offset))
      given.space.set(offset, id)
      pointer = offset + 1
    }
    given.space.set(pointer, UInt8(0))
    if !shown.isEmpty { given.space.set(StandardOffset.status, UInt16(0x10)) }
  }

  /// Adds a capability.
  /// - Returns: whether the guest sees it. `addMSI` adds MSI after all others have their places.
  private mutating func add(_ id: UInt8, at offset: Int, room: Int, _ bytes: [UInt8]) -> Bool {
    switch id {
    case Identifier.powerManagement where room >= 8:
      // The guest writes the power state, which starts as D0. PME is hidden, because nothing here handles it.
      let noSoftReset = bytes.load(UInt16.self, at: offset + 4) & 1 << 3
      isResetByPowerStates = noSoftReset == 0
      given.space.define(offset + 2, bytes.load(UInt16.self, at: offset + 2) & 0x07ff)
      given.space.define(offset + 4, noSoftReset, writable: UInt16(3))
      given.powerManagementOffset = offset
      return true
    case Identifier.advancedFeatures where room >= 6:
      // The guest sees a reset only in the PCI Express capability.
      if bytes[offset + 3] & 3 == 3 { hasFunctionLevelReset = true }
      return false
    case Identifier.msix where room >= 12 && msix == nil:
      guard let layout = Self.msixLayout(bytes, at: offset) else { return false }
      msix = layout
      given.msixOffset = offset
      return true
    case Identifier.express where room >= 0x14:
      addExpress(at: offset, room: room, bytes)
      return true
    case Identifier.vitalProductData where room >= 8:
      pass(offset + 2..<offset + 8)
      return true
    case Identifier.vendor:
      let length = min(Int(bytes[offset + 2]), room)
      guard length >= 3 else { return false }
      pass(offset + 2..<offset + length)
      return true
    default: return false
    }
  }

  private static func msixLayout(_ bytes: [UInt8], at offset: Int) -> MSIX.Layout? {
    let count = Int(bytes.load(UInt16.self, at: offset + 2) & 0x7ff) + 1
    let table = bytes.load(UInt32.self, at: offset + 4)
    let pending = bytes.load(UInt32.self, at: offset + 8)
    guard table & 7 <= 5, pending & 7 <= 5 else { return nil }
    return MSIX.Layout(
      vectorCount: count, bar: Int(table & 7), tableOffset: UInt64(table & ~7), pendingBar: Int(pending & 7),
      pendingOffset: UInt64(pending & ~7))
  }

  /// Adds the PCI Express capability. On bus 0 there is no link above the function, so an endpoint becomes a root
  /// complex integrated endpoint, as in QEMU. Below a port the link registers describe the guest's link, not the
  /// host's.
  private mutating func addExpress(at offset: Int, room: Int, _ bytes: [UInt8]) {
    given.expressOffset = offset
    let flags = bytes.load(UInt16.self, at: offset + 2)
    let version = flags & 0xf
    given.space.define(offset + 2, version | UInt16(type.rawValue) << 4)
    if type != .rootComplexIntegratedEndpoint {
      let link = ExpressCapability.link
      given.space.define(offset + 0x0c, link.capabilities)
      given.space.define(offset + 0x10, UInt16(0), writable: link.controlMask)
      given.space.define(offset + 0x12, link.status)
    }
    if bytes[offset + 7] & 0x10 != 0 { hasFunctionLevelReset = true }
    // Device Capabilities, with FLR if VFIO can reset the function.
    pass(offset + 4..<offset + 8)
    direct[offset + 7] &= ~0x10
    given.space.define(offset + 7, UInt8(offersReset ? 0x10 : 0))
    // Device Control and Status. The machine handles Initiate FLR; the bit does not reach the device.
    pass(offset + 8..<offset + 12)
    direct[offset + 9] &= 0x7f
    if version >= 2, room >= 0x2c {
      pass(offset + 0x24..<offset + 0x2c)
      deviceCapabilities2 = offset + ExpressCapability.deviceCapabilities2
    }
  }

  /// Adds MSI, which the machine emulates: at the host's offset if there is room for the machine's form, otherwise in a
  /// gap. A function with MSI-X gets no MSI.
  private mutating func addMSI(
    _ entries: [(offset: Int, id: UInt8)], _ bytes: [UInt8], _ shown: inout [(offset: Int, id: UInt8)]
  ) {
    guard msix == nil, let host = entries.first(where: { $0.id == Identifier.msi }) else { return }
    let control = bytes.load(UInt16.self, at: host.offset + 2)
    let size = 24
    var taken = [Bool](repeating: false, count: 0x100)
    for at in 0..<0x100 { taken[at] = at < 0x40 || bytes[at] != 0 || direct[at] != 0 }
    // The power management registers can read as zero, which would look like a gap.
    if let power = given.powerManagementOffset { for at in power..<power + 8 { taken[at] = true } }
    // 64-bit addresses add 4 bytes, masks 10.
    let own = 10 + (control[bit: 7] ? 4 : 0) + (control[bit: 8] ? 10 : 0)
    for at in host.offset..<min(host.offset + own, 0x100) { taken[at] = false }
    let places = [host.offset] + stride(from: 0x40, through: 0x100 - size, by: 4)
    guard let offset = places.first(where: { at in at + size <= 0x100 && !taken[at..<at + size].contains(true) }) else {
      return
    }
    msiVectorCount = 1 << min(Int(control[bits: 1...3]), 5)
    given.msiOffset = offset
    shown.append((offset, Identifier.msi))
  }

  private mutating func pass(_ range: Range<Int>) {
    for at in range { direct[at] = 0xff }
  }

  // MARK: The list at 0x100

  private mutating func addExtendedCapabilities(_ bytes: [UInt8], size: Int) {
    var entries: [(offset: Int, header: UInt32)] = []
    var offset = 0x100
    while offset >= 0x100, offset <= ConfigurationSpace.size - 4, entries.count < 64 {
      let header = bytes.load(UInt32.self, at: offset)
      guard header != 0, header != .max, !entries.contains(where: { $0.offset == offset }) else { break }
      entries.append((offset, header))
      offset = Int(header >> 20) & ~3
    }
    hasPageRequests = entries.contains { UInt16(truncatingIfNeeded: $0.header) == PageRequestControl.id }
    let shown = entries.filter { entry in
      let id = UInt16(truncatingIfNeeded: entry.header)
      return Identifier.extended.contains(id)
        || services.shows(id) && entry.offset <= ConfigurationSpace.size - TranslationServices.room
    }
    placePASIDs(
      ExtendedSpaceRoom(bytes, size: size, entries: entries) { offset in shown.contains { $0.offset == offset } })
    // The list must begin at 0x100. If the capability there is hidden, the unused identifier 0xffff takes its place.
    var list = shown
    if let pasidOffset {
      let header = 1 << 16 | UInt32(ProcessAddressSpaceControl.id)
      list.insert((pasidOffset, header), at: pasidOffset == 0x100 ? 0 : list.count)
    }
    guard !list.isEmpty else { return }
    if list[0].offset != 0x100 { list.insert((0x100, 0xffff), at: 0) }
    for (index, entry) in list.enumerated() {
      let next = index + 1 < list.count ? UInt32(list[index + 1].offset) << 20 : 0
      given.space.define(entry.offset, entry.header & 0x000f_ffff | next)
    }
    for (offset, header) in shown {
      let id = UInt16(truncatingIfNeeded: header)
      if let own = TranslationServices.registers(id, host: bytes, at: offset) {
        translationServices[id] = offset
        given.define(own, at: offset + 4)
        continue
      }
      let end = entries.map(\.offset).filter { $0 > offset }.min() ?? ConfigurationSpace.size
      pass(offset + 4..<end)
    }
    definePASIDs(bytes)
  }

  private mutating func placePASIDs(_ room: ExtendedSpaceRoom) {
    guard let pasids else { return }
    guard deviceCapabilities2 != nil, let offset = pasids.offset ?? room.freeOffset(), room.exists else {
      pasidProblem = .noRoom
      return
    }
    if room.collides(offset) { pasidProblem = .taken(offset) } else { pasidOffset = offset }
  }

  /// Defines the PASID capability, whose registers are the guest's, and announces the end-end prefixes that carry PASIDs.
  private mutating func definePASIDs(_ bytes: [UInt8]) {
    guard let pasids, let pasidOffset, let deviceCapabilities2 else { return }
    for at in pasidOffset..<pasidOffset + OfferedPASIDs.size { direct[at] = 0 }
    given.define(pasids.capability, at: pasidOffset + 4)
    // End-End TLP Prefix Supported.
    if bytes.load(UInt32.self, at: deviceCapabilities2)[bit: 21] { return }
    let byte = deviceCapabilities2 + 2
    direct[byte] &= 0x0f
    given.space.define(byte, UInt8(truncatingIfNeeded: ExpressCapability.endToEndPrefixes >> 16) & 0xf0)
  }
}
