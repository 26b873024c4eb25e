import CLinux
import Glibc

/// The calls of a VFIO device file (include/uapi/linux/vfio.h): binding and attaching, regions, interrupts, resets of a
/// function and of its bus, BARs exported as dma-bufs. Also the device's power states.
extension FakeKernel.State {
  mutating func device(
    _ index: Int, _ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?
  ) -> Int32 {
    if request == VFIO_DEVICE_BIND_IOMMUFD, let argument {
      let pointer = argument.assumingMemoryBound(to: vfio_device_bind_iommufd.self)
      guard files[pointer.pointee.iommufd] == .iommufd else { return -EBADF }
      // Only one file of a device can be bound.
      guard devices[index].boundFile == nil else { return -EINVAL }
      if let problem = devices[index].bindingProblem { return problem }
      if isOwned(index, byOtherThan: pointer.pointee.iommufd) { return -EPERM }
      devices[index].boundFile = descriptor
      devices[index].boundTo = pointer.pointee.iommufd
      devices[index].id = 1000 + UInt32(index)
      pointer.pointee.out_devid = devices[index].id
      return 0
    }
    guard devices[index].boundTo != nil else { return -EINVAL }
    if let code = failingDevices[index]?[request] { return -code }
    switch request {
    case VFIO_DEVICE_GET_INFO:
      guard let argument else { return -EFAULT }
      let pointer = argument.assumingMemoryBound(to: vfio_device_info.self)
      pointer.pointee.flags =
        UInt32(VFIO_DEVICE_FLAGS_PCI) | (devices[index].hasReset ? UInt32(VFIO_DEVICE_FLAGS_RESET) : 0)
      pointer.pointee.num_regions = 9
      pointer.pointee.num_irqs = 5
    case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
      guard let argument else { return -EFAULT }
      let request = argument.load(as: vfio_device_attach_iommufd_pt.self)
      guard request.flags == 0 else { return attachPASID(index, request) }
      return attach(index, to: request.pt_id)
    case VFIO_DEVICE_DETACH_IOMMUFD_PT:
      guard let argument else { return -EFAULT }
      let request = argument.load(as: vfio_device_detach_iommufd_pt.self)
      guard request.flags == 0 else { return detachPASID(index, request) }
      steps.append(.detach(device: index))
      answerFaults(of: index, leaving: devices[index].attachedTo)
      devices[index].attachedTo = nil
    case VFIO_DEVICE_GET_REGION_INFO:
      guard let argument else { return -EFAULT }
      return regionInformation(index, argument)
    case VFIO_DEVICE_GET_IRQ_INFO:
      guard let argument else { return -EFAULT }
      let pointer = argument.assumingMemoryBound(to: vfio_irq_info.self)
      guard let count = devices[index].interrupts[pointer.pointee.index] else { return -EINVAL }
      pointer.pointee.count = count
      pointer.pointee.flags = UInt32(VFIO_IRQ_INFO_EVENTFD)
    case VFIO_DEVICE_SET_IRQS:
      guard let argument else { return -EFAULT }
      let set = argument.load(as: vfio_irq_set.self)
      if refusesMoreInterrupts, set.start > 0 { return -EINVAL }
      let hasEvents = set.flags & UInt32(VFIO_IRQ_SET_DATA_EVENTFD) != 0
      let wanted = MemoryLayout<vfio_irq_set>.size + (hasEvents ? 4 * Int(set.count) : 0)
      guard Int(set.argsz) >= wanted else { return -EINVAL }
      // vfio_msi_enable returns the number of available vectors and enables none.
      if let hostVectors, (1...2).contains(set.index), hasEvents, Int(set.count) > hostVectors { return hostVectors }
      let events = (0..<(hasEvents ? Int(set.count) : 0)).map {
        argument.load(fromByteOffset: MemoryLayout<vfio_irq_set>.size + 4 * $0, as: Int32.self)
      }
      for event in events {
        guard let identity = Eventfd.identity(of: event), self.events[identity] == nil else { continue }
        self.events[identity] = fcntl(event, F_DUPFD_CLOEXEC, 3)
      }
      interruptSets.append((set.flags, set.index, set.start, events))
    case VFIO_DEVICE_RESET:
      guard devices[index].hasReset else { return -EINVAL }
      reset(index)
    case VFIO_DEVICE_PCI_HOT_RESET:
      guard let bus = devices[index].bus else { return -ENODEV }
      let shared = devices.indices.filter { devices[$0].bus == bus }
      guard strangers.isEmpty, shared.allSatisfy({ owner(of: $0, for: index) != .max }) else { return -EINVAL }
      for index in shared { reset(index) }
    case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
      guard let argument else { return -EFAULT }
      return busReset(index, argument)
    case VFIO_DEVICE_FEATURE:
      guard let argument else { return -EFAULT }
      return feature(index, argument)
    default: return -ENOTTY
    }
    return 0
  }

  private mutating func reset(_ index: Int) {
    devices[index].resets += 1
    devices[index].power = 0
  }

  /// Returns the value of `devid` in a vfio_pci_dependent_device.
  private func owner(of other: Int, for index: Int) -> UInt32 {
    guard let iommufd = devices[other].boundTo else { return UInt32(VFIO_PCI_DEVID_OWNED) }
    return iommufd == devices[index].boundTo ? devices[other].id : .max
  }

  private func busReset(_ index: Int, _ argument: UnsafeMutableRawPointer) -> Int32 {
    guard let bus = devices[index].bus else { return -ENODEV }
    let owners = devices.indices.filter { devices[$0].bus == bus }.map { owner(of: $0, for: index) } + strangers
    let pointer = argument.assumingMemoryBound(to: vfio_pci_hot_reset_info.self)
    let headerSize = MemoryLayout<vfio_pci_hot_reset_info>.size
    pointer.pointee.count = UInt32(owners.count)
    guard Int(pointer.pointee.argsz) >= headerSize + 8 * owners.count else { return -ENOSPC }
    pointer.pointee.flags =
      UInt32(VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
      | (owners.contains(.max) ? 0 : UInt32(VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED))
    for (number, owner) in owners.enumerated() {
      var function = vfio_pci_dependent_device()
      function.devid = owner
      function.bus = UInt8(truncatingIfNeeded: bus)
      function.devfn = UInt8(truncatingIfNeeded: number)
      argument.storeBytes(of: function, toByteOffset: headerSize + 8 * number, as: vfio_pci_dependent_device.self)
    }
    return 0
  }

  private mutating func feature(_ index: Int, _ argument: UnsafeMutableRawPointer) -> Int32 {
    let header = argument.load(as: vfio_device_feature.self)
    guard hasDMABuffers, header.flags == UInt32(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF) else {
      return -ENOTTY
    }
    let first = MemoryLayout<vfio_device_feature>.size
    let second = first + MemoryLayout<vfio_device_feature_dma_buf>.size
    let buffer = argument.load(fromByteOffset: first, as: vfio_device_feature_dma_buf.self)
    guard buffer.nr_ranges == 1, buffer.flags == 0,
      Int(header.argsz) >= second + MemoryLayout<vfio_region_dma_range>.size
    else { return -EINVAL }
    let range = argument.load(fromByteOffset: second, as: vfio_region_dma_range.self)
    guard let region = devices[index].regions[buffer.region_index], range.length > 0, range.offset % 4096 == 0,
      range.length % 4096 == 0, range.offset + range.length <= region.size
    else { return -EINVAL }
    return add(.dmaBuffer)
  }

  private mutating func attach(_ index: Int, to id: UInt32) -> Int32 {
    if let code = refusesTarget(id, of: index) ?? refusesWithoutPASIDs(id, of: index) { return code }
    if let code = refusesPageRequests(of: index, on: id) { return code }
    return attachGroup(of: index, to: id)
  }

  /// Returns the error if the device cannot be attached to the object, else nil.
  func refusesTarget(_ id: UInt32, of index: Int) -> Int32? {
    // An object id is valid only in its own iommufd.
    guard owners[id] == devices[index].boundTo else { return -ENOENT }
    switch objects[id] {
    case .addressSpace: return nil
    case .parent(_, let iommu): return iommu == devices[index].iommu ? nil : -EINVAL
    case .nested: return nil
    case .faultQueue: return -EINVAL
    case nil: return -ENOENT
    }
  }

  private func regionInformation(_ index: Int, _ argument: UnsafeMutableRawPointer) -> Int32 {
    let pointer = argument.assumingMemoryBound(to: vfio_region_info.self)
    guard pointer.pointee.index < 9 else { return -EINVAL }
    let room = Int(pointer.pointee.argsz)
    let region = devices[index].regions[pointer.pointee.index]
    pointer.pointee.size = region?.size ?? 0
    pointer.pointee.flags = region?.flags ?? 0
    pointer.pointee.offset = UInt64(pointer.pointee.index) << 40
    guard let sparse = region?.sparse, !sparse.isEmpty else { return 0 }
    pointer.pointee.flags |= UInt32(VFIO_REGION_INFO_FLAG_CAPS)
    // There are two capabilities: one says that the MSI-X table may be mapped, and one lists the areas.
    let first = MemoryLayout<vfio_region_info>.size
    let second = first + MemoryLayout<vfio_info_cap_header>.size
    let wanted = second + MemoryLayout<vfio_region_info_cap_sparse_mmap>.size + 16 * sparse.count
    pointer.pointee.argsz = UInt32(wanted)
    guard room >= wanted else {
      pointer.pointee.cap_offset = 0
      return 0
    }
    pointer.pointee.cap_offset = UInt32(first)
    argument.storeBytes(
      of: vfio_info_cap_header(id: UInt16(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE), version: 1, next: UInt32(second)),
      toByteOffset: first, as: vfio_info_cap_header.self)
    argument.storeBytes(
      of: vfio_region_info_cap_sparse_mmap(
        header: vfio_info_cap_header(id: UInt16(VFIO_REGION_INFO_CAP_SPARSE_MMAP), version: 1, next: 0),
        nr_areas: UInt32(sparse.count), reserved: 0),
      toByteOffset: second, as: vfio_region_info_cap_sparse_mmap.self)
    for (number, area) in sparse.enumerated() {
      argument.storeBytes(
        of: vfio_region_sparse_mmap_area(offset: area.0, size: area.1),
        toByteOffset: second + MemoryLayout<vfio_region_info_cap_sparse_mmap>.size + 16 * number,
        as: vfio_region_sparse_mmap_area.self)
    }
    return 0
  }

  // MARK: Power

  /// Returns whether an access fails. In D3hot, only configuration space answers.
  func isAsleep(_ index: Int, _ offset: UInt64) -> Bool { devices[index].power == 3 && offset >> 40 != 7 }

  mutating func takePower(_ index: Int, _ offset: UInt64, _ bytes: UnsafeRawBufferPointer) {
    guard offset >> 40 == 7, let at = devices[index].powerOffset else { return }
    let start = offset & 0xff_ffff
    guard at >= start, at < start + UInt64(bytes.count) else { return }
    devices[index].power = bytes[Int(at - start)] & 3
  }
}
