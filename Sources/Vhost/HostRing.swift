import Linux

/// The areas of a split virtqueue as addresses in this process: virtio 1.2, section 2.7. The kernel accesses them
/// without a check, so they are checked here.
public struct HostRing: Hashable, Sendable {
  public let descriptors: UInt64
  public let available: UInt64
  public let used: UInt64

  /// - Parameters:
  ///   - size: the number of descriptors, at most 32768.
  ///   - descriptors, available, used: guest physical addresses.
  /// - Returns: nil if an area is not in RAM, or not aligned.
  public init?(size: UInt16, descriptors: UInt64, available: UInt64, used: UInt64, in memory: GuestMemory) {
    let size = UInt64(size)
    // Each ring begins with flags and index, and ends with the event index.
    guard let descriptors = memory.hostAddress(of: descriptors, count: 16 * size, alignment: 16),
      let available = memory.hostAddress(of: available, count: 6 + 2 * size, alignment: 2),
      let used = memory.hostAddress(of: used, count: 6 + 8 * size, alignment: 4)
    else { return nil }
    self.descriptors = descriptors
    self.available = available
    self.used = used
  }
}

extension GuestMemory {
  /// Returns the address in this process of a range of guest physical addresses.
  /// - Parameter alignment: a power of two.
  /// - Returns: nil if any of the range is not RAM, or if it is not aligned.
  fileprivate func hostAddress(of address: UInt64, count: UInt64, alignment: UInt64) -> UInt64? {
    guard address & (alignment - 1) == 0, contains(address, count: count) else { return nil }
    for region in regions where region.address <= address && address - region.address < region.size {
      return hostAddress(of: region) + (address - region.address)
    }
    return nil
  }
}
