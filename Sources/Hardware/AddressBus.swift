import Synchronization

/// The number of bytes that one register access moves. A bus carries no other widths.
public enum AccessWidth: Int, Sendable, CaseIterable {
  case byte = 1
  case word = 2
  case doubleword = 4
  case quadword = 8

  /// All bits of this width set: a mask, and the value of a read that no device answers, as on PCI.
  @inlinable
  public var allOnes: UInt64 { .lowBits(rawValue * 8) }

  /// Returns the little-endian value of the bytes at the offsets from `offset` on.
  @inlinable
  public func assemble<Offset: FixedWidthInteger>(from offset: Offset, _ byte: (Offset) -> UInt8) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<rawValue {
      value |= UInt64(byte(offset &+ Offset(truncatingIfNeeded: index))) << (8 * index)
    }
    return value
  }

  /// Calls `body` with the bytes of a little-endian value and their offsets from `offset` on.
  @inlinable
  public func split<Offset: FixedWidthInteger>(
    _ value: UInt64, from offset: Offset, _ body: (Offset, UInt8) -> Void
  ) {
    for index in 0..<rawValue { body(offset &+ Offset(truncatingIfNeeded: index), value[byte: index]) }
  }
}

/// A device that answers accesses within regions of a bus.
///
/// Any vCPU's thread may call it, and two may call at once.
public protocol BusDevice: AnyObject, Sendable {
  /// - Parameter offset: from the region's start; `offset + width` lies within the region.
  func read(offset: UInt64, width: AccessWidth) -> UInt64
  /// - Parameter value: bits beyond `width` are zero.
  func write(offset: UInt64, width: AccessWidth, value: UInt64)

  /// Reacts to a possible change of the visible parts of this device's regions, after another region was attached or
  /// detached. The bus calls this without holding a lock. Calls may come late and out of order, so the device asks
  /// `AddressBus.visibleParts` for the present state.
  func visiblePartsChanged()
}

extension BusDevice {
  public func visiblePartsChanged() {}
}

/// An address space that contains devices: memory, or the I/O ports.
///
/// The guest moves BARs, so regions may overlap. A fixed region of the board wins over a movable one; among equals, the
/// region that was attached first wins. An accelerator that serves a region itself, through a memory slot or an
/// ioeventfd, follows the same rule: it serves only the region's visible parts.
///
/// Lock order: code that holds the bus lock takes no other lock, and calls no device. The reference that a lookup
/// returns keeps the device alive during the access.
public final class AddressBus: Sendable {
  public enum Priority: Int, Sendable, Comparable {
    /// The guest places the region: a BAR.
    case movable
    /// The board places the region.
    case fixed

    public static func < (a: Priority, b: Priority) -> Bool { a.rawValue < b.rawValue }
  }

  /// The handle of an attached region.
  public struct Attachment: Hashable, Sendable {
    fileprivate let number: UInt64
  }

  private struct Region {
    let attachment: Attachment
    let base: UInt64
    /// The address of the last byte: inclusive, so that a region may end at the top of the space.
    let last: UInt64
    let priority: Priority
    let device: any BusDevice

    func overlaps(_ other: Region) -> Bool { base <= other.last && other.base <= last }

    /// Whether this region answers where the two overlap. The region that was attached first has the smaller number.
    func precedes(_ other: Region) -> Bool {
      (priority, other.attachment.number) > (other.priority, attachment.number)
    }
  }

  /// A range of addresses in which one region answers.
  private struct Segment {
    let first: UInt64
    let last: UInt64
    let base: UInt64
    let device: any BusDevice
  }

  private struct Map {
    var regions: [Region] = []
    var segments: [Segment] = []
    var nextNumber: UInt64 = 0
  }

  private let map = Mutex(Map())

  public init() {}

  /// - Parameter size: in bytes, not zero. A region that would extend past the top of the space ends there.
  public func attach(
    _ device: any BusDevice, at base: UInt64, size: UInt64, priority: Priority = .fixed
  ) -> Attachment {
    var affected: [any BusDevice] = []
    let attachment = attach(device, at: base, size: size, priority: priority, affecting: &affected)
    for device in affected { device.visiblePartsChanged() }
    return attachment
  }

  /// Detaches a region. An access that found it earlier may still be in flight.
  public func detach(_ attachment: Attachment) {
    var affected: [any BusDevice] = []
    detach(attachment, affecting: &affected)
    for device in affected { device.visiblePartsChanged() }
  }

  /// Attaches a region for a caller that holds a lock which `visiblePartsChanged` takes.
  /// - Parameter affected: receives the devices whose `visiblePartsChanged` the caller must call after it releases that
  ///   lock.
  public func attach(
    _ device: any BusDevice, at base: UInt64, size: UInt64, priority: Priority = .fixed,
    affecting affected: inout [any BusDevice]
  ) -> Attachment {
    precondition(size > 0, "a region must not be empty")
    let (end, overflow) = base.addingReportingOverflow(size - 1)
    return map.withLock { map in
      let attachment = Attachment(number: map.nextNumber)
      map.nextNumber += 1
      let region = Region(
        attachment: attachment, base: base, last: overflow ? .max : end, priority: priority, device: device)
      affected += map.regions.filter { $0.overlaps(region) && region.precedes($0) }.map(\.device)
      map.regions.append(region)
      map.segments = Self.flatten(map.regions)
      return attachment
    }
  }

  /// Detaches a region for a caller that holds a lock which `visiblePartsChanged` takes.
  /// - Parameter affected: as for `attach`.
  public func detach(_ attachment: Attachment, affecting affected: inout [any BusDevice]) {
    map.withLock { map in
      guard let index = map.regions.firstIndex(where: { $0.attachment == attachment }) else { return }
      let region = map.regions.remove(at: index)
      affected += map.regions.filter { $0.overlaps(region) && region.precedes($0) }.map(\.device)
      map.segments = Self.flatten(map.regions)
    }
  }

  /// A region as `attachedRegions` reports it.
  public struct AttachedRegion: Sendable {
    public let first: UInt64
    /// The address of the last byte.
    public let last: UInt64
    public let priority: Priority
    public let device: any BusDevice
  }

  /// The attached regions, sorted by address and then by the order of attachment.
  public var attachedRegions: [AttachedRegion] {
    map.withLock { $0.regions }.sorted { ($0.base, $0.attachment.number) < ($1.base, $1.attachment.number) }.map {
      AttachedRegion(first: $0.base, last: $0.last, priority: $0.priority, device: $0.device)
    }
  }

  /// Returns the parts of a region that no region with precedence covers.
  /// - Returns: offsets from the region's start, in order; none for a detached region.
  public func visibleParts(of attachment: Attachment) -> [Range<UInt64>] {
    map.withLock { map in
      guard let region = map.regions.first(where: { $0.attachment == attachment }) else { return [] }
      // No overflow: a region never covers the whole space, because its size is at most the largest address.
      var parts = [0..<region.last - region.base + 1]
      for other in map.regions where other.overlaps(region) && other.precedes(region) {
        let first = max(other.base, region.base) - region.base
        let end = min(other.last, region.last) - region.base + 1
        parts = parts.flatMap { part in
          [
            part.lowerBound..<max(part.lowerBound, min(part.upperBound, first)),
            max(part.lowerBound, min(part.upperBound, end))..<part.upperBound,
          ]
        }.filter { !$0.isEmpty }
      }
      return parts
    }
  }

  /// Reads from the device at an address.
  /// - Returns: nil if no single device answers the whole access.
  public func read(address: UInt64, width: AccessWidth) -> UInt64? {
    guard let (device, offset) = find(address, width) else { return nil }
    return device.read(offset: offset, width: width) & width.allOnes
  }

  /// Writes to the device at an address.
  /// - Returns: false if no single device answers the whole access.
  @discardableResult
  public func write(address: UInt64, width: AccessWidth, value: UInt64) -> Bool {
    guard let (device, offset) = find(address, width) else { return false }
    device.write(offset: offset, width: width, value: value & width.allOnes)
    return true
  }

  private func find(_ address: UInt64, _ width: AccessWidth) -> (any BusDevice, UInt64)? {
    let (last, overflow) = address.addingReportingOverflow(UInt64(width.rawValue - 1))
    if overflow { return nil }
    return map.withLock { map in
      var low = 0
      var high = map.segments.count
      while low < high {
        let middle = (low + high) / 2
        if map.segments[middle].last < address { low = middle + 1 } else { high = middle }
      }
      guard low < map.segments.count else { return nil }
      let segment = map.segments[low]
      guard segment.first <= address, last <= segment.last else { return nil }
      return (segment.device, address - segment.base)
    }
  }

  /// Cuts overlapping regions into disjoint segments, sorted by address.
  private static func flatten(_ regions: [Region]) -> [Segment] {
    let ranked = regions.sorted { $0.precedes($1) }
    var starts = Set<UInt64>()
    for region in regions {
      starts.insert(region.base)
      if region.last < .max { starts.insert(region.last + 1) }
    }
    let cuts = starts.sorted()
    var segments: [Segment] = []
    for (index, first) in cuts.enumerated() {
      guard let winner = ranked.first(where: { $0.base <= first && first <= $0.last }) else { continue }
      let last = index + 1 < cuts.count ? cuts[index + 1] - 1 : winner.last
      if let previous = segments.last, previous.device === winner.device, previous.base == winner.base,
        previous.last &+ 1 == first
      {
        segments[segments.count - 1] = Segment(
          first: previous.first, last: last, base: previous.base, device: previous.device)
      } else {
        segments.append(Segment(first: first, last: last, base: winner.base, device: winner.device))
      }
    }
    return segments
  }
}
