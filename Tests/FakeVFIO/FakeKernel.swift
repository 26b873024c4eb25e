import CLinux
import Glibc
import Synchronization
import VFIO

/// iommufd and VFIO as a kernel has them, as far as our module asks: descriptors, objects with their users, devices.
/// It keeps the kernel's rules of order, and can have any call fail.
package final class FakeKernel: SystemCalls {
  package struct Device {
    package var path: String
    /// Devices of one kind can share a parent.
    package var iommu: Int
    package var capability: UInt64 = 0x2f << 16
    package var extendedCapability: UInt64
    package var isVTd = true
    package var hasPageRequests = true
    package var regions: [UInt32: (size: UInt64, flags: UInt32, sparse: [(UInt64, UInt64)])] = [:]
    package var interrupts: [UInt32: UInt32] = [0: 1, 1: 1, 2: 8, 4: 1]
    package var boundTo: Int32?
    package var id: UInt32 = 0
    package var attachedTo: UInt32?
    /// By region; one without answers each byte with its offset.
    package var contents: [UInt32: [UInt8]] = [:]
    package var writes: [(region: UInt32, offset: UInt64, bytes: [UInt8])] = []
    /// The file of those that are open that is bound.
    package var boundFile: Int32?
    /// VFIO_DEVICE_FLAGS_RESET.
    package var hasReset = true
    /// Functions on one bus are reset together; nil: the bus cannot be reset.
    package var bus: Int? = 5
    /// How often it has been reset, alone or with its bus.
    package var resets = 0
    /// Where PowerState is in its configuration space, and what it is.
    package var powerOffset: UInt64?
    package var power: UInt8 = 0
    /// What binding answers, as -errno: the group is in use, say.
    package var bindingProblem: Int32?

    package init(
      path: String, iommu: Int = 0,
      extendedCapability: UInt64 = 1 << 43 | 1 << 46 | 1 << 47 | 1 << 26 | 1 << 7
    ) {
      self.path = path
      self.iommu = iommu
      self.extendedCapability = extendedCapability
    }
  }

  package enum Object: Equatable {
    case addressSpace
    case parent(of: UInt32, iommu: Int)
    case nested(on: UInt32, root: UInt64)
    case faultQueue
  }

  package enum File: Equatable {
    case iommufd
    case device(Int)
    case faultQueue(UInt32)
    case dmaBuffer
  }

  package struct State {
    package var files: [Int32: File] = [:]
    /// Beyond what this process may have open, as some descriptors are real.
    package var nextFile: Int32 = 1 << 24
    package var objects: [UInt32: Object] = [:]
    package var nextObject: UInt32 = 1
    package var devices: [Device] = []
    /// By IOAS and address.
    package var mapped: [UInt32: [UInt64: (size: UInt64, flags: UInt32)]] = [:]
    package var hostMappings = 0
    /// Names of the requests, in order.
    package var calls: [String] = []
    /// What broke the kernel's rules, which our module must never do.
    var violations: [String] = []
    package var faultQueues: [UInt32: FakeFaultQueue] = [:]
    /// By nested table.
    package var queueOfTable: [UInt32: UInt32] = [:]
    package var responses: [FakeResponse] = []
    /// A fault queue's read answers EINVAL where its first group does not fit; else with nothing, as kernels once did.
    package var tellsWhatDoesNotFit = true
    /// To groups that are not outstanding.
    package var refusedResponses = 0
    package var invalidations: [(table: UInt32, entries: [iommu_hwpt_vtd_s1_invalidate])] = []
    package var interruptSets: [(flags: UInt32, index: UInt32, start: UInt32, events: [Int32])] = []
    /// Calls that still succeed before one fails; nil: none fails.
    package var callsBeforeFailure: Int?
    package var failure: Int32 = EIO
    /// The one that did.
    package var failed: String?
    /// A request that fails whenever it comes.
    package var failing: [UInt32: Int32] = [:]
    /// The same for some devices alone.
    package var failingDevices: [Int: [UInt32: Int32]] = [:]
    /// What opening /dev/iommu answers, as errno.
    package var iommufdProblem: Int32?
    /// Functions that a bus has beside ours.
    package var strangers: [UInt32] = []
    /// As Linux 6.19 has, and 6.12 has not.
    package var hasDMABuffers = false
    /// The eventfds that interrupts were ever to signal, by their numbers, each with a descriptor of our own: as long as
    /// that is open, the real kernel gives the number to no other.
    package var events: [String: Int32] = [:]
    /// The iommufd of each object.
    package var owners: [UInt32: Int32] = [:]
    var caller: Int32 = -1
    /// Interrupts beyond the first ones need all of them set anew.
    package var refusesMoreInterrupts = false
  }

  package let state = Mutex(State())

  deinit { for event in state.withLock({ $0.events.values }) { _ = Glibc.close(event) } }

  package init(devices: [Device] = [Device(path: "/dev/vfio/devices/vfio0")]) {
    state.withLock { $0.devices = devices }
  }

  /// What the kernel has against those that used it: rules that were broken, and, when every owner is gone, what is
  /// still there.
  package var complaints: [String] {
    let open = Eventfd.allOpen
    return state.withLock { state in
      state.violations
        + open.filter { event in state.events[event.identity].map { $0 != event.descriptor } ?? false }
        .map { "eventfd \($0.identity)" } + state.files.values.map { "file \($0)" }
        + state.objects.map { "object \($0.key) \($0.value)" }
        + state.mapped.filter { state.objects[$0.key] == nil }.map { "mappings of IOAS \($0.key)" }
        + (state.hostMappings == 0 ? [] : ["\(state.hostMappings) mmaps"])
    }
  }

  // MARK: SystemCalls

  package func open(_ path: String, flags: Int32) -> Int32 {
    state.withLock { state in
      if let code = state.fails("open", 0) { return code }
      let file: File
      if path == "/dev/iommu" {
        if let problem = state.iommufdProblem { return -problem }
        file = .iommufd
      } else if let index = state.devices.firstIndex(where: { $0.path == path }) {
        file = .device(index)
      } else {
        return -ENOENT
      }
      return state.add(file)
    }
  }

  package func close(_ descriptor: Int32) {
    state.withLock { state in
      switch state.files.removeValue(forKey: descriptor) {
      case .device(let index):
        guard state.devices[index].boundFile == descriptor else { break }
        state.answerFaults(of: index, leaving: state.devices[index].attachedTo)
        state.devices[index].attachedTo = nil
        state.devices[index].boundTo = nil
        state.devices[index].boundFile = nil
      case .iommufd:
        // The kernel frees what is left; our module is to have freed it before.
        let left = state.objects.filter { state.owners[$0.key] == descriptor }
        if !left.isEmpty { state.violations.append("iommufd closed with objects \(left)") }
      case .faultQueue(let id): state.faultQueues[id]?.close()
      case .dmaBuffer: break
      case nil: state.violations.append("close of \(descriptor), which is not open")
      }
    }
  }

  package func read(_ descriptor: Int32, at offset: UInt64?, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    state.withLock { state in
      if let code = state.fails("read", 0) { return Int(code) }
      guard let file = state.files[descriptor] else { return -Int(EBADF) }
      if case .faultQueue(let id) = file {
        return state.readFaults(id, buffer)
      }
      let offset = offset ?? 0
      if case .device(let index) = file, state.isAsleep(index, offset) { return -Int(EIO) }
      var bytes = (0..<UInt64(buffer.count)).map { UInt8(truncatingIfNeeded: offset &+ $0) }
      if case .device(let index) = file, let contents = state.devices[index].contents[UInt32(offset >> 40)] {
        let start = Int(offset & 0xff_ffff)
        // As for a ROM, what there is.
        guard start < contents.count else { return 0 }
        bytes = Array(contents[start..<min(start + buffer.count, contents.count)])
      }
      buffer.copyBytes(from: bytes)
      return bytes.count
    }
  }

  package func write(_ descriptor: Int32, at offset: UInt64?, from buffer: UnsafeRawBufferPointer) -> Int {
    state.withLock { state in
      guard let file = state.files[descriptor] else { return -Int(EBADF) }
      if case .faultQueue(let id) = file {
        state.calls.append("respond")
        return state.writeResponses(id, buffer)
      }
      if let code = state.fails("write", 0) { return Int(code) }
      let offset = offset ?? 0
      if case .device(let index) = file {
        if state.isAsleep(index, offset) { return -Int(EIO) }
        state.takePower(index, offset, buffer)
        let region = UInt32(offset >> 40)
        let start = Int(offset & 0xff_ffff)
        state.devices[index].writes.append((region, UInt64(start), Array(buffer)))
        if let contents = state.devices[index].contents[region], start + buffer.count <= contents.count {
          state.devices[index].contents[region]?.replaceSubrange(start..<start + buffer.count, with: buffer)
        }
      }
      return buffer.count
    }
  }

  package func map(_ descriptor: Int32, at offset: UInt64, size: Int, writable: Bool) -> Int {
    state.withLock { state in
      if let code = state.fails("mmap", 0) { return Int(code) }
      state.hostMappings += 1
      return 0x7000_0000
    }
  }

  package func unmap(_ address: Int, size: Int) { state.withLock { $0.hostMappings -= 1 } }

  package func ioctl(_ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    state.withLock { state in
      if let code = state.fails(Self.names[request] ?? "\(request)", request) { return code }
      switch state.files[descriptor] {
      case .iommufd:
        guard let argument else { return -EFAULT }
        state.caller = descriptor
        return state.iommufd(request, argument)
      case .device(let index): return state.device(index, descriptor, request, argument)
      default: return -EBADF
      }
    }
  }

  package static let names: [UInt32: String] = [
    IOMMU_DESTROY: "DESTROY", IOMMU_IOAS_ALLOC: "IOAS_ALLOC", IOMMU_IOAS_MAP: "IOAS_MAP",
    IOMMU_IOAS_UNMAP: "IOAS_UNMAP", IOMMU_IOAS_IOVA_RANGES: "IOVA_RANGES", IOMMU_HWPT_ALLOC: "HWPT_ALLOC",
    IOMMU_GET_HW_INFO: "GET_HW_INFO", IOMMU_HWPT_INVALIDATE: "INVALIDATE", IOMMU_FAULT_QUEUE_ALLOC: "FAULT_ALLOC",
    VFIO_DEVICE_BIND_IOMMUFD: "BIND", VFIO_DEVICE_GET_INFO: "INFO", VFIO_DEVICE_GET_REGION_INFO: "REGION_INFO",
    VFIO_DEVICE_GET_IRQ_INFO: "IRQ_INFO", VFIO_DEVICE_SET_IRQS: "SET_IRQS", VFIO_DEVICE_RESET: "RESET",
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: "ATTACH", VFIO_DEVICE_DETACH_IOMMUFD_PT: "DETACH",
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: "HOT_RESET_INFO", VFIO_DEVICE_PCI_HOT_RESET: "HOT_RESET",
    VFIO_DEVICE_FEATURE: "FEATURE", IOMMU_IOAS_MAP_FILE: "IOAS_MAP_FILE",
  ]
}

/// Eventfds of this process, by the kernel's numbers for them (fdinfo's eventfd-id).
package enum Eventfd {
  package static func identity(of descriptor: Int32) -> String? {
    let file = Glibc.open("/proc/self/fdinfo/\(descriptor)", O_RDONLY)
    guard file >= 0 else { return nil }
    defer { Glibc.close(file) }
    var bytes = [UInt8](repeating: 0, count: 512)
    let count = Glibc.read(file, &bytes, bytes.count)
    let text = String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
    return text.split(separator: "\n").first { $0.hasPrefix("eventfd-id:") }
      .map { $0.dropFirst(11).filter { !$0.isWhitespace } }
  }

  package static var allOpen: [(descriptor: Int32, identity: String)] {
    guard let folder = opendir("/proc/self/fd") else { return [] }
    defer { closedir(folder) }
    var found: [(descriptor: Int32, identity: String)] = []
    while let entry = readdir(folder) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if let descriptor = Int32(name), let identity = identity(of: descriptor) {
        found.append((descriptor, identity))
      }
    }
    return found
  }
}

extension FakeKernel.State {
  package mutating func fails(_ name: String, _ request: UInt32) -> Int32? {
    calls.append(name)
    // What frees is not refused: there is nothing that a caller could do about it.
    if request == IOMMU_DESTROY || request == VFIO_DEVICE_DETACH_IOMMUFD_PT { return nil }
    if let code = failing[request] { return -code }
    guard let left = callsBeforeFailure, left >= 0 else { return nil }
    callsBeforeFailure = left - 1
    if left == 0 { failed = name }
    return left == 0 ? -failure : nil
  }

  mutating func add(_ file: FakeKernel.File) -> Int32 {
    nextFile += 1
    files[nextFile] = file
    return nextFile
  }

  // MARK: Power

  /// Regions other than configuration space do not answer out of D0.
  func isAsleep(_ index: Int, _ offset: UInt64) -> Bool { devices[index].power == 3 && offset >> 40 != 7 }

  mutating func takePower(_ index: Int, _ offset: UInt64, _ bytes: UnsafeRawBufferPointer) {
    guard offset >> 40 == 7, let at = devices[index].powerOffset else { return }
    let start = offset & 0xff_ffff
    guard at >= start, at < start + UInt64(bytes.count) else { return }
    devices[index].power = bytes[Int(at - start)] & 3
  }

  private mutating func add(_ object: FakeKernel.Object) -> UInt32 {
    nextObject += 1
    objects[nextObject] = object
    owners[nextObject] = caller
    return nextObject
  }

  private func isUsed(_ id: UInt32) -> Bool {
    devices.contains { $0.attachedTo == id } || queueOfTable.values.contains(id)
      || files.values.contains(.faultQueue(id))
      || objects.values.contains { object in
        switch object {
        case .parent(let space, _): space == id
        case .nested(let parent, _): parent == id
        default: false
        }
      }
  }

  // MARK: iommufd

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
      objects[id] = nil
      mapped[id] = nil
      faultQueues[id] = nil
      queueOfTable[id] = nil
    case IOMMU_IOAS_ALLOC:
      let id = add(.addressSpace)
      argument.assumingMemoryBound(to: iommu_ioas_alloc.self).pointee.out_ioas_id = id
    case IOMMU_IOAS_MAP:
      let map = argument.load(as: iommu_ioas_map.self)
      guard objects[map.ioas_id] == .addressSpace else { return -ENOENT }
      guard map.user_va % 4096 == 0, map.iova % 4096 == 0, map.length % 4096 == 0 else { return -EINVAL }
      // A nesting parent takes no read-only mapping on 6.12.
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
      pointer.pointee.out_hwpt_id = id
      return 0
    }
    guard objects[request.pt_id] == .addressSpace else { return -EINVAL }
    guard request.flags & UInt32(IOMMU_HWPT_ALLOC_NEST_PARENT) != 0 else { return -EINVAL }
    guard device.extendedCapability >> 26 & 1 != 0 else { return -EOPNOTSUPP }
    let readOnly = mapped[request.pt_id]?.values.contains { $0.flags & UInt32(IOMMU_IOAS_MAP_WRITEABLE) == 0 } == true
    if readOnly { return -EINVAL }
    pointer.pointee.out_hwpt_id = add(.parent(of: request.pt_id, iommu: device.iommu))
    return 0
  }

  // MARK: VFIO

  mutating func device(
    _ index: Int, _ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?
  ) -> Int32 {
    if request == VFIO_DEVICE_BIND_IOMMUFD, let argument {
      let pointer = argument.assumingMemoryBound(to: vfio_device_bind_iommufd.self)
      guard files[pointer.pointee.iommufd] == .iommufd else { return -EBADF }
      // One file at a time.
      guard devices[index].boundFile == nil else { return -EINVAL }
      if let problem = devices[index].bindingProblem { return problem }
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
      return attach(index, to: argument.load(as: vfio_device_attach_iommufd_pt.self).pt_id)
    case VFIO_DEVICE_DETACH_IOMMUFD_PT:
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

  /// As vfio_pci_dependent_device has it.
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
    // Each iommufd has numbers of its own.
    guard owners[id] == devices[index].boundTo else { return -ENOENT }
    switch objects[id] {
    case .addressSpace: break
    case .parent(_, let iommu): if iommu != devices[index].iommu { return -EINVAL }
    case .nested: break
    case .faultQueue: return -EINVAL
    case nil: return -ENOENT
    }
    if let code = refusesPageRequests(of: index, on: id) { return code }
    answerFaults(of: index, leaving: devices[index].attachedTo)
    devices[index].attachedTo = id
    return 0
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
    // Two capabilities: the table of MSI-X may be mapped, and the areas.
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
}
