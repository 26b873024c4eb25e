import Devices
import Hardware
import Linux
import Synchronization
import VhostUser

/// The device IOTLB of one connection to a back end, as the IOMMU sees it: invalidations go to the back end, and the
/// back end's misses go to the IOMMU.
///
/// After an invalidation of a ring, the back end gets the ring's translation without asking. DPDK 22.11 disables a ring
/// whose translation is gone. Its poll-mode driver does not access a disabled ring, so it does not ask, and an update
/// enables the ring again.
///
/// Lock order: `state`, then the unit's locks, then the session's, which is a leaf. `invalidate` and the answer to a miss
/// take only the session's.
final class VhostUserTranslation: RemoteIOTLB {
  private let session: VhostUserSession
  private let memory: GuestMemory
  private let state = Mutex(State())

  private struct State {
    var port: (any RemoteDMAPort)?
    /// Makes the port of a new connection.
    var connect: (@Sendable (any RemoteIOTLB) -> (any RemoteDMAPort)?)?
    /// The queues that have started.
    var rings: [StartedRing] = []
  }

  private struct StartedRing {
    let index: Int
    let layout: VirtQueue.Layout

    /// Whether one of the areas overlaps the range: virtio 1.2, section 2.7.
    func overlaps(_ range: DMARange) -> Bool {
      let size = UInt64(layout.size)
      return Self.overlap(range, layout.descriptorArea, 16 * size)
        || Self.overlap(range, layout.driverArea, 6 + 2 * size)
        || Self.overlap(range, layout.deviceArea, 6 + 8 * size)
    }

    /// The driver chooses the address, so an area may wrap around. Then its first byte counts.
    private static func overlap(_ range: DMARange, _ first: UInt64, _ count: UInt64) -> Bool {
      range.overlaps(DMARange(first: first, last: max(first, first &+ count &- 1)))
    }
  }

  init(session: VhostUserSession, memory: GuestMemory) {
    self.session = session
    self.memory = memory
  }

  /// Connects to the unit, unless that is done. Called when a queue starts.
  func start(_ queue: DatapathQueue) {
    state.withLock { state in
      state.connect = queue.connect
      if state.port?.isConnected != true { state.port = queue.connect(self) }
      state.rings.removeAll { $0.index == queue.index }
      state.rings.append(StartedRing(index: queue.index, layout: queue.layout))
    }
  }

  /// Called when a queue stops.
  func stop(queue index: Int) { state.withLock { $0.rings.removeAll { $0.index == index } } }

  /// Connects to the unit for a new connection, for queues that wait for it.
  func reconnect() {
    state.withLock { state in
      if state.port?.isConnected != true, let connect = state.connect { state.port = connect(self) }
    }
  }

  /// Returns the guest physical address that the device reads at an address; nil if it has no translation.
  func physicalAddress(of address: UInt64) -> UInt64? {
    guard let port = state.withLock({ $0.port }) else { return nil }
    var target: UInt64?
    try? port.translate(address, for: .read, recordsFault: false) { mapping in
      target = mapping.physicalAddress &+ (address &- mapping.range.first)
    }
    return target
  }

  /// Ends the cache, after the connection has ended.
  func disconnect() { state.withLock { $0.port.take() }?.disconnect() }

  // MARK: RemoteIOTLB

  let asksAgainToWrite = true

  func invalidate(_ ranges: [DMARange], number: UInt64) -> RemoteInvalidation {
    let isSent = session.invalidate(ranges.map { $0.first...$0.last }) { [weak self] in
      guard let self else { return }
      state.withLock { $0.port }?.complete(number)
      restoreRings(in: ranges)
    }
    return isSent ? .later : .done
  }

  func cutOff() { session.cutOff() }

  // MARK: Misses, on the loop's thread

  /// - Parameter permissions: bit 0 for reads, bit 1 for writes.
  func answerMiss(_ address: UInt64, permissions: UInt8) {
    answer(address, for: DMAAccess(rawValue: permissions & 3), recordsFault: true)
  }

  /// Answers for the rings that the back end has lost. The update makes it look for all areas of the ring, and ask for
  /// those that the update does not cover.
  private func restoreRings(in ranges: [DMARange]) {
    let lost = state.withLock { state in state.rings.filter { ring in ranges.contains { ring.overlaps($0) } } }
    // The driver may have unmapped the ring before it resets the device: no request is at fault.
    for ring in lost { answer(ring.layout.descriptorArea, for: [.read, .write], recordsFault: false) }
  }

  private func answer(_ address: UInt64, for access: DMAAccess, recordsFault: Bool) {
    guard let port = state.withLock({ $0.port }) else { return }
    var isMemory = true
    do throws(DMAError) {
      try port.translate(address, for: access, recordsFault: recordsFault) { mapping in
        isMemory = install(mapping, at: address, writes: access.contains(.write))
      }
    } catch {
      // If it is a fault, the port has recorded it. Without an answer the back end does not reach the page.
    }
    if !isMemory, recordsFault { port.noteUnclaimed() }
  }

  /// Sends the part of a mapping that is in the same region of RAM as the missed address.
  /// - Returns: false if the address is not RAM.
  private func install(_ mapping: RemoteMapping, at address: UInt64, writes: Bool) -> Bool {
    let before = address &- mapping.range.first
    let after = mapping.range.last &- address
    let target = mapping.physicalAddress &+ before
    guard let region = memory.regions.first(where: { target >= $0.address && target &- $0.address < $0.size }) else {
      return false
    }
    let back = min(before, target &- region.address)
    let ahead = min(after, region.size &- 1 &- (target &- region.address))
    let first = address &- back
    // The back end may hold the page with fewer rights, or another page of the range. DPDK does not replace an entry,
    // and ignores an update that begins where an entry begins.
    if writes || back &+ ahead != 0xfff { _ = session.invalidate([first...(address &+ ahead)]) {} }
    session.update(
      address: first, count: back &+ ahead &+ 1, target: target &- back,
      permissions: (mapping.isReadable ? 1 : 0) | (mapping.isWritable ? 2 : 0))
    return true
  }
}
