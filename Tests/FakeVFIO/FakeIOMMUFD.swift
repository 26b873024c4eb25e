import CLinux
import Glibc

/// The calls of /dev/iommu (include/uapi/linux/iommufd.h): address spaces, page tables over them, invalidations, fault
/// queues. An object in use cannot be destroyed.
extension FakeKernel.State {
  private mutating func add(_ object: FakeKernel.Object) -> UInt32 {
    nextObject += 1
    objects[nextObject] = object
    owners[nextObject] = caller
    return nextObject
  }

  private func isUsed(_ id: UInt32) -> Bool {
    devices.contains { $0.attachedTo == id || $0.pasids.values.contains(id) } || queueOfTable.values.contains(id)
      || files.values.contains(.faultQueue(id))
      || objects.values.contains { object in
        switch object {
        case .parent(let space, _): space == id
        case .nested(let parent, _): parent == id
        default: false
        }
      }
  }

  mutating func iommufd(_ request: UInt32, _ argument: UnsafeMutableRawPointer) -> Int32 {
    switch request {
    case IOMMU_DESTROY:
      let id = argument.load(as: iommu_destroy.self).id
      guard objects[id] != nil else {
        violations.append("destroy of \(id), which is not there")
        return -ENOENT
      }
      if isUsed(id) {
        violations.append("destroy of \(id), which is in use")
        return -EBUSY
      }
      if let object = objects.removeValue(forKey: id) { steps.append(.destroy(object)) }
      mapped[id] = nil
      faultQueues[id] = nil
      queueOfTable[id] = nil
      pasidTables.remove(id)
    case IOMMU_IOAS_ALLOC:
      let id = add(.addressSpace)
      argument.assumingMemoryBound(to: iommu_ioas_alloc.self).pointee.out_ioas_id = id
    case IOMMU_IOAS_MAP:
      let map = argument.load(as: iommu_ioas_map.self)
      guard objects[map.ioas_id] == .addressSpace else { return -ENOENT }
      guard map.user_va % 4096 == 0, map.iova % 4096 == 0, map.length % 4096 == 0 else { return -EINVAL }
      // Linux 6.12 refuses read-only mappings in a nesting parent's address space.
      let hasParent = objects.values.contains { if case .parent(map.ioas_id, _) = $0 { true } else { false } }
      if hasParent, map.flags & UInt32(IOMMU_IOAS_MAP_WRITEABLE) == 0 { return -EINVAL }
      mapped[map.ioas_id, default: [:]][map.iova] = (map.length, map.flags)
    case IOMMU_IOAS_MAP_FILE:
      guard hasDMABuffers else { return -ENOTTY }
      let map = argument.load(as: iommu_ioas_map_file.self)
      guard objects[map.ioas_id] == .addressSpace else { return -ENOENT }
      guard files[map.fd] == .dmaBuffer else { return -EBADF }
      guard map.iova % 4096 == 0, map.length % 4096 == 0 else { return -EINVAL }
      if mapped[map.ioas_id]?.contains(where: { $0.key < map.iova + map.length && map.iova < $0.key + $0.value.size })
        == true
      {
        return -EEXIST
      }
      mapped[map.ioas_id, default: [:]][map.iova] = (map.length, map.flags)
    case IOMMU_IOAS_UNMAP:
      let unmap = argument.load(as: iommu_ioas_unmap.self)
      guard mapped[unmap.ioas_id]?.removeValue(forKey: unmap.iova)?.size == unmap.length else { return -ENOENT }
      steps.append(.unmap)
    case IOMMU_IOAS_IOVA_RANGES:
      let pointer = argument.assumingMemoryBound(to: iommu_ioas_iova_ranges.self)
      let room = pointer.pointee.num_iovas
      pointer.pointee.num_iovas = 2
      guard room >= 2,
        let array = UnsafeMutablePointer<iommu_iova_range>(bitPattern: UInt(pointer.pointee.allowed_iovas))
      else { return -EMSGSIZE }
      array[0] = iommu_iova_range(start: 0, last: 0xfedf_ffff)
      array[1] = iommu_iova_range(start: 0xfef0_0000, last: 1 << 48 - 1)
    case IOMMU_HWPT_ALLOC: return allocateTable(argument.assumingMemoryBound(to: iommu_hwpt_alloc.self))
    case IOMMU_GET_HW_INFO:
      let pointer = argument.assumingMemoryBound(to: iommu_hw_info.self)
      guard let device = devices.first(where: { $0.boundTo != nil && $0.id == pointer.pointee.dev_id }) else {
        return -ENOENT
      }
      pointer.pointee.out_max_pasid_log2 = device.pasidWidth
      pointer.pointee.out_capabilities = device.hardwareCapabilities
      pointer.pointee.out_data_type = UInt32(device.isVTd ? IOMMU_HW_INFO_TYPE_INTEL_VTD : IOMMU_HW_INFO_TYPE_NONE)
      if device.isVTd, let data = UnsafeMutablePointer<iommu_hw_info_vtd>(bitPattern: UInt(pointer.pointee.data_uptr)) {
        data.pointee.cap_reg = device.capability
        data.pointee.ecap_reg = device.extendedCapability
        data.pointee.flags = UInt32(IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17)
      }
    case IOMMU_HWPT_INVALIDATE:
      let invalidate = argument.load(as: iommu_hwpt_invalidate.self)
      guard case .nested = objects[invalidate.hwpt_id],
        let entries = UnsafePointer<iommu_hwpt_vtd_s1_invalidate>(bitPattern: UInt(invalidate.data_uptr))
      else { return -EINVAL }
      let all = (0..<Int(invalidate.entry_num)).map { entries[$0] }
      guard all.allSatisfy({ $0.addr % 4096 == 0 && ($0.npages != .max || $0.addr == 0) }) else { return -EINVAL }
      if let code = failingInvalidations[invalidate.hwpt_id] { return -code }
      invalidations.append((invalidate.hwpt_id, all))
    case IOMMU_FAULT_QUEUE_ALLOC:
      let pointer = argument.assumingMemoryBound(to: iommu_fault_alloc.self)
      let queue = FakeFaultQueue()
      let id = add(FakeKernel.Object.faultQueue)
      faultQueues[id] = queue
      files[queue.descriptor] = .faultQueue(id)
      pointer.pointee.out_fault_id = id
      pointer.pointee.out_fault_fd = UInt32(bitPattern: queue.descriptor)
    default: return -ENOTTY
    }
    return 0
  }

  private mutating func allocateTable(_ pointer: UnsafeMutablePointer<iommu_hwpt_alloc>) -> Int32 {
    let request = pointer.pointee
    let allowsPASIDs = request.flags & UInt32(IOMMU_HWPT_ALLOC_PASID) != 0
    if allowsPASIDs, !attachesPASIDs { return -EOPNOTSUPP }
    guard owners[request.pt_id] == caller else { return -ENOENT }
    guard let device = devices.first(where: { $0.boundTo != nil && $0.id == request.dev_id }) else { return -ENOENT }
    if request.data_type == UInt32(IOMMU_HWPT_DATA_VTD_S1) {
      guard case .parent(_, device.iommu) = objects[request.pt_id],
        let data = UnsafePointer<iommu_hwpt_vtd_s1>(bitPattern: UInt(request.data_uptr))
      else { return -EINVAL }
      let takesFaults = request.flags & UInt32(IOMMU_HWPT_FAULT_ID_VALID) != 0
      guard !takesFaults || objects[request.fault_id] == .faultQueue else { return -ENOENT }
      let id = add(.nested(on: request.pt_id, root: data.pointee.pgtbl_addr))
      if takesFaults { queueOfTable[id] = request.fault_id }
      if allowsPASIDs { pasidTables.insert(id) }
      pointer.pointee.out_hwpt_id = id
      return 0
    }
    guard objects[request.pt_id] == .addressSpace else { return -EINVAL }
    guard request.flags & UInt32(IOMMU_HWPT_ALLOC_NEST_PARENT) != 0 else { return -EINVAL }
    guard device.extendedCapability >> 26 & 1 != 0 else { return -EOPNOTSUPP }
    let readOnly = mapped[request.pt_id]?.values.contains { $0.flags & UInt32(IOMMU_IOAS_MAP_WRITEABLE) == 0 } == true
    if readOnly { return -EINVAL }
    let id = add(.parent(of: request.pt_id, iommu: device.iommu))
    if allowsPASIDs { pasidTables.insert(id) }
    pointer.pointee.out_hwpt_id = id
    return 0
  }
}
