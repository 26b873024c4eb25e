import CLinux
import Glibc

/// PASIDs of devices as VFIO and iommufd of Linux 7.3 attach them (drivers/vfio/device_cdev.c, iommufd.c;
/// drivers/iommu/iommufd/device.c, `iommufd_hwpt_pasid_compat`; drivers/iommu/iommu.c, `iommu_attach_device_pasid`). Each
/// device with PASIDs is alone in its group.
extension FakeKernel.State {
  /// Attaches a PASID, or replaces its table.
  mutating func attachPASID(_ index: Int, _ request: vfio_device_attach_iommufd_pt) -> Int32 {
    guard attachesPASIDs, request.flags == UInt32(VFIO_DEVICE_ATTACH_PASID),
      Int(request.argsz) >= MemoryLayout<vfio_device_attach_iommufd_pt>.size
    else { return -EINVAL }
    if let code = devices[index].failingPASIDs[request.pasid] { return -code }
    if let code = refusesTarget(request.pt_id, of: index) { return code }
    // The table of requests without PASID must allow PASIDs, too.
    guard pasidTables.contains(request.pt_id), devices[index].attachedTo.map(pasidTables.contains) != false else {
      return -EINVAL
    }
    guard request.pasid != 0 else {
      violations.append("attachment of PASID 0, which is that of requests without PASID")
      return -EINVAL
    }
    guard request.pasid >> UInt32(devices[index].pasidWidth) == 0 else { return -EINVAL }
    if queueOfTable[request.pt_id] != nil, !devices[index].hasPageRequests { return -ENODEV }
    let former = devices[index].pasids.updateValue(request.pt_id, forKey: request.pasid)
    if former != request.pt_id { answerFaults(of: index, leaving: former, pasid: request.pasid) }
    return 0
  }

  mutating func detachPASID(_ index: Int, _ request: vfio_device_detach_iommufd_pt) -> Int32 {
    guard attachesPASIDs, request.flags == UInt32(VFIO_DEVICE_DETACH_PASID),
      Int(request.argsz) >= MemoryLayout<vfio_device_detach_iommufd_pt>.size
    else { return -EINVAL }
    steps.append(.detachPASID(request.pasid, device: index))
    let former = devices[index].pasids.removeValue(forKey: request.pasid)
    answerFaults(of: index, leaving: former, pasid: request.pasid)
    return 0
  }

  /// Returns the error if PASIDs of the device are attached and the object does not allow PASIDs, else nil.
  func refusesWithoutPASIDs(_ id: UInt32, of index: Int) -> Int32? {
    devices[index].pasids.isEmpty || pasidTables.contains(id) ? nil : -EINVAL
  }
}

extension FakeKernel {
  /// Returns the object that a PASID of a device is attached to, or nil.
  package func attached(_ number: Int, pasid: UInt32) -> Object? {
    state.withLock { state in state.devices[number].pasids[pasid].flatMap { state.objects[$0] } }
  }

  /// The attached PASIDs of a device, in order.
  package func pasids(of number: Int) -> [UInt32] { state.withLock { $0.devices[number].pasids.keys.sorted() } }
}
