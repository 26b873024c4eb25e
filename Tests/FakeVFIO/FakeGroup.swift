import Glibc

/// IOMMU groups as iommufd models them (drivers/iommu/iommufd/device.c of Linux 6.12, `struct iommufd_group`): all
/// functions of a group share one page table, from the first attachment to the last detachment.
extension FakeKernel.State {
  /// Returns the functions of a device's group, including the device.
  func group(of index: Int) -> [Int] {
    guard let group = devices[index].group else { return [index] }
    return devices.indices.filter { devices[$0].group == group }
  }

  /// iommu_device_claim_dma_owner: one iommufd owns all functions of a group.
  func isOwned(_ index: Int, byOtherThan iommufd: Int32) -> Bool {
    group(of: index).contains { devices[$0].boundTo.map { $0 != iommufd } ?? false }
  }

  /// `igroup->hwpt`: the table that translates requests of all functions of a group, also of those that are not
  /// attached.
  func table(ofGroupOf index: Int) -> UInt32? { group(of: index).lazy.compactMap { devices[$0].attachedTo }.first }

  /// For a function that is not attached, does what iommufd_hw_pagetable_attach does: it must use the group's table, or
  /// gets EINVAL. For an attached one, does what iommufd_device_do_replace does: all attached functions of the group
  /// move with it.
  mutating func attachGroup(of index: Int, to id: UInt32) -> Int32 {
    guard devices[index].attachedTo != nil else {
      if let table = table(ofGroupOf: index), table != id { return -EINVAL }
      devices[index].attachedTo = id
      return 0
    }
    for member in group(of: index) where devices[member].attachedTo != nil {
      answerFaults(of: member, leaving: devices[member].attachedTo)
      devices[member].attachedTo = id
    }
    return 0
  }
}

extension FakeKernel {
  /// Returns what translates a device's requests; nil if the host blocks them. This may differ from what the device
  /// itself is attached to.
  package func translation(_ number: Int) -> Object? {
    state.withLock { state in state.table(ofGroupOf: number).flatMap { state.objects[$0] } }
  }
}
