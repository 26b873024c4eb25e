import Hardware

/// The memory-mapped configuration space table (MCFG; PCI Firmware Specification 3.3, section 4.1.2).
enum ConfigurationSpaceDescription {
  static func table(lastBus: UInt8) -> [UInt8] {
    var body = [UInt8](repeating: 0, count: 8)
    body.append(littleEndian: ACPIPlatform.configurationRange.lowerBound)
    body.append(littleEndian: UInt16(0))  // segment group
    body.append(0)  // first bus
    body.append(lastBus)
    body.append(littleEndian: UInt32(0))
    return TableHeader.table("MCFG", revision: 1, body: body)
  }
}
