import Glibc

/// IOMMU groups as iommufd keeps them (drivers/iommu/iommufd/device.c of Linux 6.12, `struct iommufd_group`): one page
/// table for all functions of a group, which is there from the first attachment until the last detachment.
extension FakeKernel.State {
  /// The functions of a device's group, the device among them.
  func group(of index: Int) -> [Int] {
    guard let group = devices[index].group else { return [index] }
    return devices.indices.filter { devices[$0].group == group }
  }

  /// iommu_device_claim_dma_owner: a group has one owner, which is an iommufd.
  func isOwned(_ index: Int, byOtherThan iommufd: Int32) -> Bool {
    group(of: index).contains { devices[$0].boundTo.map { $0 != iommufd } ?? false }
  }

  /// `igroup->hwpt`: what requests of all functions of a group go by, of those too that are not attached themselves.
  func table(ofGroupOf index: Int) -> UInt32? { group(of: index).lazy.compactMap { devices[$0].attachedTo }.first }

  /// iommufd_hw_pagetable_attach for a function that is not attached: it joins the others where they are, or gets EINVAL.
  /// iommufd_device_do_replace for one that is: all functions that are attached move with it.
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
  /// What a device's requests go by; nil: the host refuses them. Not the same as where the device is attached.
  package func translation(_ number: Int) -> Object? {
    state.withLock { state in state.table(ofGroupOf: number).flatMap { state.objects[$0] } }
  }
}
