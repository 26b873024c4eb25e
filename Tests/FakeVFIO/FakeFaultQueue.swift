import CLinux
import Glibc

/// A fault queue of the fake kernel (drivers/iommu/iommufd/fault.c, io-pgfault.c). A group waits to be read and then,
/// under the lowest free cookie, for its response.
package struct FakeFaultQueue {
  package struct Group: Equatable {
    package var device: UInt32
    package var index: UInt32
    package var pasid: UInt32?
    package var addresses: [UInt64]
    /// The PASID of the requests before the last one, if it is another one.
    package var partialPASID: UInt32?
  }

  /// Readable while groups wait to be read. A real descriptor of this process, so that poll(2) works.
  let descriptor: Int32
  var waiting: [Group] = []
  package fileprivate(set) var outstanding: [UInt32: Group] = [:]

  init() { descriptor = nestling_eventfd() }

  func close() { _ = Glibc.close(descriptor) }

  /// Makes the descriptor readable exactly while groups wait to be read.
  func signal() {
    var count: UInt64 = 0
    _ = Glibc.read(descriptor, &count, 8)
    count = 1
    if !waiting.isEmpty { _ = Glibc.write(descriptor, &count, 8) }
  }
}

/// How a group was answered.
package struct FakeResponse: Equatable {
  package var device: Int
  package var index: UInt32
  package var isSuccess: Bool
  /// Whether the kernel itself answered.
  package var isAutomatic: Bool

  package init(device: Int, index: UInt32, isSuccess: Bool, isAutomatic: Bool = false) {
    self.device = device
    self.index = index
    self.isSuccess = isSuccess
    self.isAutomatic = isAutomatic
  }
}

extension FakeKernel {
  /// Makes a device send a group of page requests, one page each.
  /// - Parameter partialPASID: the PASID of all requests but the last, if it is another one. The kernel collects a group
  ///   by its index alone.
  package func requestPages(
    of device: Int, group: UInt32, pasid: UInt32? = 0, partialPASID: UInt32? = nil, _ addresses: [UInt64]
  ) {
    state.withLock { state in
      let target =
        pasid ?? 0 == 0 ? state.devices[device].attachedTo : pasid.flatMap { state.devices[device].pasids[$0] }
      guard let table = target, let queue = state.queueOfTable[table] else {
        state.responses.append(FakeResponse(device: device, index: group, isSuccess: false, isAutomatic: true))
        return
      }
      state.faultQueues[queue]?.waiting.append(
        .init(
          device: state.devices[device].id, index: group, pasid: pasid, addresses: addresses, partialPASID: partialPASID
        ))
      state.faultQueues[queue]?.signal()
    }
  }

  package var responses: [FakeResponse] { state.withLock { $0.responses } }
  /// The PASIDs of the groups that were read but not answered, in order; 0 for requests without PASID.
  package var outstandingPASIDs: [UInt32] {
    state.withLock { $0.faultQueues.values.flatMap { $0.outstanding.values.map { $0.pasid ?? 0 } }.sorted() }
  }
  /// How many groups were read but not answered.
  package var outstandingCount: Int { state.withLock { $0.faultQueues.values.reduce(0) { $0 + $1.outstanding.count } } }
}

extension FakeKernel.State {
  mutating func readFaults(_ id: UInt32, _ buffer: UnsafeMutableRawBufferPointer) -> Int {
    let size = MemoryLayout<iommu_hwpt_pgfault>.size
    guard buffer.count % size == 0 else { return -Int(ESPIPE) }
    guard var queue = faultQueues[id] else { return -Int(EBADF) }
    var done = 0
    while let group = queue.waiting.first {
      guard group.addresses.count * size <= buffer.count - done else {
        if done == 0, reportsOversizedGroups { return -Int(EINVAL) }
        break
      }
      queue.waiting.removeFirst()
      let cookie = (1...).first { queue.outstanding[$0] == nil } ?? 0
      queue.outstanding[cookie] = group
      for (number, address) in group.addresses.enumerated() {
        var fault = iommu_hwpt_pgfault()
        let isLast = number == group.addresses.count - 1
        let pasid = isLast ? group.pasid : group.partialPASID ?? group.pasid
        if pasid != nil { fault.flags |= UInt32(IOMMU_PGFAULT_FLAGS_PASID_VALID) }
        if isLast { fault.flags |= UInt32(IOMMU_PGFAULT_FLAGS_LAST_PAGE) }
        fault.dev_id = group.device
        fault.pasid = pasid ?? 0
        fault.grpid = group.index
        fault.perm = UInt32(IOMMU_PGFAULT_PERM_READ | IOMMU_PGFAULT_PERM_WRITE)
        fault.addr = address
        fault.cookie = cookie
        buffer.storeBytes(of: fault, toByteOffset: done, as: iommu_hwpt_pgfault.self)
        done += size
      }
    }
    queue.signal()
    faultQueues[id] = queue
    return done
  }

  mutating func writeResponses(_ id: UInt32, _ buffer: UnsafeRawBufferPointer) -> Int {
    let size = MemoryLayout<iommu_hwpt_page_response>.size
    guard buffer.count == size else { return -Int(ESPIPE) }
    let response = buffer.load(as: iommu_hwpt_page_response.self)
    guard response.code <= 1, let group = faultQueues[id]?.outstanding.removeValue(forKey: response.cookie) else {
      refusedResponses += 1
      return -Int(EINVAL)
    }
    respond(to: group, isSuccess: response.code == 0, isAutomatic: false)
    return size
  }

  private mutating func respond(to group: FakeFaultQueue.Group, isSuccess: Bool, isAutomatic: Bool) {
    guard let device = devices.firstIndex(where: { $0.id == group.device }) else { return }
    responses.append(
      FakeResponse(device: device, index: group.index, isSuccess: isSuccess, isAutomatic: isAutomatic))
  }

  /// When requests of a device, those with a PASID or without, leave a table, answers their groups as invalid.
  mutating func answerFaults(of device: Int, leaving table: UInt32?, pasid: UInt32 = 0) {
    guard let table, let id = queueOfTable[table], var queue = faultQueues[id] else { return }
    let own = devices[device].id
    func leaves(_ group: FakeFaultQueue.Group) -> Bool { group.device == own && group.pasid ?? 0 == pasid }
    for group in queue.waiting where leaves(group) { respond(to: group, isSuccess: false, isAutomatic: true) }
    queue.waiting.removeAll(where: leaves)
    for (cookie, group) in queue.outstanding where leaves(group) {
      queue.outstanding[cookie] = nil
      respond(to: group, isSuccess: false, isAutomatic: true)
    }
    queue.signal()
    faultQueues[id] = queue
  }

  /// Returns the error if the table has a fault queue that the device cannot use, else nil. A kernel before 6.15
  /// enables ATS only on its own tables, and enabling page requests needs ATS.
  func refusesPageRequests(of device: Int, on table: UInt32) -> Int32? {
    guard queueOfTable[table] != nil else { return nil }
    guard devices[device].hasPageRequests else { return -ENODEV }
    if attachesPASIDs { return nil }
    guard let current = devices[device].attachedTo else { return -ENODEV }
    return queueOfTable[current] == nil && isNested(current) ? -ENODEV : nil
  }

  private func isNested(_ table: UInt32) -> Bool { if case .nested = objects[table] { true } else { false } }
}
