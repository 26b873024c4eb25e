import CLinux
import Glibc
import Synchronization
import VFIO

/// The part of iommufd and VFIO that our module uses: descriptors, objects with their users, devices. It checks the
/// kernel's rules of order and can make any call fail.
package final class FakeKernel: SystemCalls {
  package struct Device {
    package var path: String
    /// Which IOMMU the device is behind. Devices with the same number can share a parent.
    package var iommu: Int
    /// The IOMMU group, whose functions share one page table; nil for a group with this device alone.
    package var group: Int?
    package var capability: UInt64 = 0x2f << 16
    package var extendedCapability: UInt64
    package var isVTd = true
    package var hasPageRequests = true
    package var regions: [UInt32: (size: UInt64, flags: UInt32, sparse: [(UInt64, UInt64)])] = [:]
    package var interrupts: [UInt32: UInt32] = [0: 1, 1: 1, 2: 8, 4: 1]
    package var boundTo: Int32?
    package var id: UInt32 = 0
    package var attachedTo: UInt32?
    /// max_pasid_log2: the width of the PASIDs that the kernel has enabled for the device.
    package var pasidWidth: UInt8 = 0
    /// IOMMU_HW_CAP_*.
    package var hardwareCapabilities: UInt64 = 0
    /// The table of each attached PASID.
    package var pasids: [UInt32: UInt32] = [:]
    /// The PASIDs whose attachment fails, each with its errno.
    package var failingPASIDs: [UInt32: Int32] = [:]
    /// By region. A region without contents returns each byte's offset.
    package var contents: [UInt32: [UInt8]] = [:]
    package var writes: [(region: UInt32, offset: UInt64, bytes: [UInt8])] = []
    /// The one open file of the device that is bound.
    package var boundFile: Int32?
    /// VFIO_DEVICE_FLAGS_RESET.
    package var hasReset = true
    /// Functions on one bus are reset together; nil if the bus cannot be reset.
    package var bus: Int? = 5
    /// How often the device has been reset, alone or with its bus.
    package var resets = 0
    /// The offset of PowerState in configuration space; `power` is its value.
    package var powerOffset: UInt64?
    package var power: UInt8 = 0
    /// The -errno that binding returns: for example, because the group is in use.
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

  /// Steps of a device's removal, in the order in which they happened.
  package enum Step: Equatable {
    /// Bus Master Enable was cleared.
    case busMasterOff(device: Int)
    case detach(device: Int)
    case detachPASID(UInt32, device: Int)
    /// A range was unmapped from an address space.
    case unmap
    /// A BAR was unmapped from this process.
    case unmapBAR
    case destroy(Object)
    case close(File)
  }

  package struct State {
    package var steps: [Step] = []
    package var files: [Int32: File] = [:]
    /// Above the descriptors of this process, because some descriptors are real.
    package var nextFile: Int32 = 1 << 24
    package var objects: [UInt32: Object] = [:]
    package var nextObject: UInt32 = 1
    package var devices: [Device] = []
    /// The mappings, by IOAS and address.
    package var mapped: [UInt32: [UInt64: (size: UInt64, flags: UInt32)]] = [:]
    package var hostMappings = 0
    /// Names of the requests, in order.
    package var calls: [String] = []
    /// Violations of the kernel's rules. There must be none.
    var violations: [String] = []
    package var faultQueues: [UInt32: FakeFaultQueue] = [:]
    /// The fault queue of each nested table that has one.
    package var queueOfTable: [UInt32: UInt32] = [:]
    package var responses: [FakeResponse] = []
    /// Whether a read of a fault queue returns EINVAL if the first group does not fit. Otherwise the read returns no
    /// bytes, as in older kernels.
    package var reportsOversizedGroups = true
    /// Responses to groups that are not outstanding.
    package var refusedResponses = 0
    package var invalidations: [(table: UInt32, entries: [iommu_hwpt_vtd_s1_invalidate])] = []
    package var interruptSets: [(flags: UInt32, index: UInt32, start: UInt32, events: [Int32])] = []
    /// How many calls succeed before one fails; nil if none fails.
    package var callsBeforeFailure: Int?
    package var failure: Int32 = EIO
    /// The call that failed.
    package var failed: String?
    /// The requests that always fail, each with its errno.
    package var failing: [UInt32: Int32] = [:]
    /// The same for single devices.
    package var failingDevices: [Int: [UInt32: Int32]] = [:]
    /// The errno that opening /dev/iommu returns.
    package var iommufdProblem: Int32?
    /// The owner (`devid`) of each further function on the devices' bus.
    package var strangers: [UInt32] = []
    /// Whether the kernel attaches PASIDs, and tables with fault queues without ATS: Linux 6.15 does, 6.12 does not.
    package var attachesPASIDs = true
    /// The tables that were allocated for use with PASIDs.
    package var pasidTables: Set<UInt32> = []
    /// The tables whose invalidation fails, each with its errno.
    package var failingInvalidations: [UInt32: Int32] = [:]
    /// Whether BARs can be exported as dma-bufs: Linux 6.19 can do this, 6.12 cannot.
    package var hasDMABuffers = false
    /// The eventfds that interrupts were ever set to signal, by the kernel's number, each with a duplicate descriptor.
    /// While the duplicate is open, the real kernel does not reuse the number.
    package var events: [String: Int32] = [:]
    /// The iommufd of each object.
    package var owners: [UInt32: Int32] = [:]
    var caller: Int32 = -1
    /// Whether SET_IRQS is refused for a start above 0: adding interrupts then means setting all of them again.
    package var refusesMoreInterrupts = false
    /// How many MSI and MSI-X vectors the host has; nil for no limit.
    package var hostVectors: Int32?
  }

  package let state = Mutex(State())
  /// Called with each request's name before the fake kernel handles the request. The function can block the caller.
  package let beforeRequest = Mutex<(@Sendable (String) -> Void)?>(nil)

  deinit { for event in state.withLock({ $0.events.values }) { _ = Glibc.close(event) } }

  package init(devices: [Device] = [Device(path: "/dev/vfio/devices/vfio0")]) {
    state.withLock { $0.devices = devices }
  }

  /// Violations of the rules and, after all owners have ended, everything that leaked.
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
      if let file = state.files[descriptor] { state.steps.append(.close(file)) }
      switch state.files.removeValue(forKey: descriptor) {
      case .device(let index):
        guard state.devices[index].boundFile == descriptor else { break }
        state.answerFaults(of: index, leaving: state.devices[index].attachedTo)
        state.devices[index].attachedTo = nil
        state.devices[index].pasids = [:]
        state.devices[index].boundTo = nil
        state.devices[index].boundFile = nil
      case .iommufd:
        // The real kernel frees the remaining objects, but our module must have freed them before.
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
        // As for a ROM, the read returns the bytes up to the end of the contents.
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
        if region == 7, start == 4, buffer.first.map({ $0 & 4 == 0 }) == true {
          state.steps.append(.busMasterOff(device: index))
        }
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

  package func unmap(_ address: Int, size: Int) {
    state.withLock { state in
      state.hostMappings -= 1
      state.steps.append(.unmapBAR)
    }
  }

  package func deviceNumber(of descriptor: Int32) -> (major: UInt32, minor: UInt32)? {
    state.withLock { state in
      guard case .device(let index) = state.files[descriptor] else { return nil }
      return (Self.deviceMajor, UInt32(index))
    }
  }

  /// The major number of VFIO's device files; the minor number is the device's index.
  package static let deviceMajor: UInt32 = 511

  package func ioctl(_ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    beforeRequest.withLock { $0 }?(Self.names[request] ?? "\(request)")
    return state.withLock { state in
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

extension FakeKernel.State {
  package mutating func fails(_ name: String, _ request: UInt32) -> Int32? {
    calls.append(name)
    // Requests that free something do not fail: a caller could not react.
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
}
