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

  /// A function that is not attached must use the group's table; otherwise the result is EINVAL
  /// (iommufd_hw_pagetable_attach). When an attached function changes its table, all attached functions of the group
  /// change theirs (iommufd_device_do_replace).
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
  /// Returns the object that translates a device's requests; nil if the host blocks them. The device itself may be
  /// attached to another object, or to none.
  package func translation(_ number: Int) -> Object? {
    state.withLock { state in state.table(ofGroupOf: number).flatMap { state.objects[$0] } }
  }
}
