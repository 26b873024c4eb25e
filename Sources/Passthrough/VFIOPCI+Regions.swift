import Glibc
import Hardware
import Linux
import PCI
import VFIO

/// The parts of a host's function for the guest's bus: its BARs, their mappings, its description.
extension VFIOPCI {
  static func bytes(of region: VFIORegion, _ device: VFIODevice) throws(SystemError) -> [UInt8] {
    var bytes: [UInt8] = []
    let size = min(max(region.size, 256), UInt64(ConfigurationSpace.size))
    guard device.read(region, offset: 0, width: 4) != nil else {
      throw SystemError("read", "configuration space of \(device.file.name)", code: EIO)
    }
    for offset in stride(from: 0, to: size, by: 4) {
      bytes.append(
        littleEndian: UInt32(truncatingIfNeeded: device.read(region, offset: offset, width: 4) ?? 0xffff_ffff))
    }
    return bytes
  }

  static func bars(
    _ bytes: [UInt8], _ device: VFIODevice
  ) throws(SystemError) -> (registers: [BaseAddressRegister], regions: [Int: VFIORegion]) {
    var registers: [BaseAddressRegister] = []
    var regions: [Int: VFIORegion] = [:]
    var index = 0
    while index < 6 {
      let bits = bytes.load(UInt32.self, at: StandardOffset.baseAddressRegisters + 4 * index)
      let is64 = bits & 7 == 4 && index < 5
      let region = try device.region(UInt32(index))
      let isIO = bits[bit: 0]
      if region.size >= (isIO ? 4 : 16), region.size.nonzeroBitCount == 1 {
        registers.append(
          BaseAddressRegister(
            index: index, space: isIO ? .io : is64 ? .memory64 : .memory32, size: region.size,
            prefetchable: !isIO && bits[bit: 3]))
        regions[index] = region
      }
      index += is64 ? 2 : 1
    }
    return (registers, regions)
  }

  /// Maps the areas of the BARs that can be mapped, without the pages that must be trapped.
  static func mappings(
    of regions: [Int: VFIORegion], _ msix: MSIX.Layout?, _ device: VFIODevice
  ) -> [Int: [RegionMapping]] {
    var trapped: [Int: [Range<UInt64>]] = [:]
    if let msix {
      trapped[msix.bar, default: []].append(pages(msix.tableOffset, msix.tableSize))
      trapped[msix.pendingBar, default: []].append(pages(msix.pendingOffset, msix.pendingSize))
    }
    return regions.reduce(into: [:]) { mappings, entry in
      let (bar, region) = entry
      // An area that cannot be mapped is trapped.
      mappings[bar] = Self.areas(of: region, without: trapped[bar] ?? [])
        .compactMap { try? RegionMapping($0, of: region, device: device) }
    }
  }

  /// Returns the whole pages that contain a range.
  static func pages(_ offset: UInt64, _ size: UInt64) -> Range<UInt64> {
    let end = (offset + size + 0xfff) & ~0xfff
    return offset & ~0xfff..<end
  }

  /// Returns the areas of a region that can be mapped, in whole pages, without the trapped ranges.
  static func areas(of region: VFIORegion, without trapped: [Range<UInt64>]) -> [VFIORegion.Area] {
    var areas = region.mappableAreas.compactMap { area -> Range<UInt64>? in
      let (end, overflow) = area.offset.addingReportingOverflow(area.size)
      guard !overflow, end <= region.size else { return nil }
      let first = (area.offset + 0xfff) & ~0xfff
      let last = end & ~0xfff
      return first < last ? first..<last : nil
    }
    for range in trapped {
      areas = areas.flatMap { area -> [Range<UInt64>] in
        guard area.overlaps(range) else { return [area] }
        return [
          area.lowerBound..<max(area.lowerBound, range.lowerBound),
          min(area.upperBound, range.upperBound)..<area.upperBound,
        ].filter { !$0.isEmpty }
      }
    }
    return areas.map { VFIORegion.Area(offset: $0.lowerBound, size: $0.upperBound - $0.lowerBound) }
  }

  /// Returns the whole pages of an area that lie within visible parts of its BAR.
  static func pages(of area: VFIORegion.Area, within parts: [Range<UInt64>]) -> [VFIORegion.Area] {
    parts.compactMap { part in
      // Parts lie within a BAR, whose size is a power of two: rounding up does not overflow.
      let first = max(area.offset, (part.lowerBound + 0xfff) & ~0xfff)
      let end = min(area.offset + area.size, part.upperBound & ~0xfff)
      return first < end ? VFIORegion.Area(offset: first, size: end - first) : nil
    }
  }

  static func description(
    _ space: HostConfigurationSpace, _ registers: [BaseAddressRegister]
  ) -> FunctionDescription {
    let header = space.header
    var description = FunctionDescription(
      vendorID: header.load(UInt16.self, at: StandardOffset.vendorID),
      deviceID: header.load(UInt16.self, at: StandardOffset.deviceID),
      classCode: header.load(UInt32.self, at: StandardOffset.revisionID) >> 8)
    description.revisionID = header[StandardOffset.revisionID]
    description.subsystemVendorID = header.load(UInt16.self, at: StandardOffset.subsystemVendorID)
    description.subsystemID = header.load(UInt16.self, at: StandardOffset.subsystemID)
    description.interruptPin = space.interruptPin
    description.baseAddressRegisters = registers
    description.msix = space.msix.flatMap { layout in
      // Ignores a table that reaches beyond its BAR.
      registers.contains { $0.index == layout.bar && layout.tableOffset + layout.tableSize <= $0.size } ? layout : nil
    }
    description.msiVectorCount = space.msiVectorCount
    description.configuration = space.given
    return description
  }
}
