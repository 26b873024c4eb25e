import Devices
import Hardware
import Linux
import Synchronization
import Vhost

/// The translations that one vhost device of the kernel holds: answers the kernel's misses from the unit, and takes
/// translations back when the guest invalidates them. Requests go through the unit as if the function made them.
///
/// A ring stops at each miss until its answer, so an answer brings the translations of the next buffers, too.
///
/// The loop's thread answers the misses. Lock order: the unit's locks, then `state`, which is a leaf. The kernel's file
/// is written without it.
final class VhostTranslation: RemoteIOTLB {
  private struct State {
    var port: (any RemoteDMAPort)?
    var registration: EventLoop.Registration?
    var handlers: Handlers?
    var refused = RefusedMisses()
    /// By the number of the ring. Nil while the ring is off, and while the loop's thread uses it.
    var lookaheads: [RingLookahead?] = [nil, nil]
    /// The layouts of the rings that run.
    var layouts: [VirtQueue.Layout?] = [nil, nil]
  }

  /// What the owner of the rings does for their translations.
  struct Handlers: Sendable {
    /// Makes the kernel access no more memory. The unit calls it, so it must not call the port.
    var cut: @Sendable () -> Void
    /// Stops packets, and costs the device a reset. Called on the loop's thread without a lock.
    var fail: @Sendable () -> Void
    /// Stops packets, so that the rings send no misses. Called on the loop's thread without a lock.
    var pause: @Sendable () -> Void
    /// Makes the kernel free the misses that it keeps, and continue with the rings, which send again the misses that
    /// they wait for. Called on the loop's thread without a lock.
    var resume: @Sendable () -> Void
    /// Makes the kernel continue with the rings. Called on the loop's thread without a lock.
    var kick: @Sendable () -> Void
  }

  /// The most misses that the loop's thread answers before it serves other descriptors.
  private static let burst = 64
  /// The most translations that follow the answer to one miss before the kernel asks for them.
  private static let aheadLimit = 128

  /// The kernel's device sends no miss for a write to a page that it holds as read-only.
  let asksAgainToWrite = false
  private let device: any VhostDevice
  private let memory: GuestMemory
  private let loop: EventLoop
  /// Continues after a burst. The burst may have emptied the queue, and then the descriptor is not readable.
  private let continuation: EventLoop.Job
  private let state = Mutex(State())
  /// The number of invalidations that may have taken translations which the kernel has not used yet.
  private let losses = Atomic<UInt64>(0)

  init(of device: any VhostDevice, memory: GuestMemory, loop: EventLoop) {
    self.device = device
    self.memory = memory
    self.loop = loop
    continuation = EventLoop.Job(on: loop)
    continuation.onRun { [weak self] in self?.answerMisses() }
  }

  deinit { state.withLock { $0.registration }?.cancel() }

  /// Must be called before `connect`.
  func setHandlers(_ handlers: Handlers) { state.withLock { $0.handlers = handlers } }

  /// Connects to the unit, unless that is done. Called before a ring starts.
  /// - Returns: whether there is a unit between the function and memory.
  func connect(
    _ connect: (any RemoteIOTLB) -> (any RemoteDMAPort)?
  ) throws(SystemError) -> Bool {
    let isConnected = state.withLock { state in
      state.refused.removeAll()
      return state.port?.isConnected == true
    }
    if !isConnected {
      let port = connect(self)
      state.withLock { $0.port = port }
      guard port != nil else { return false }
    }
    if let registration = state.withLock({ $0.registration }) {
      // An error in a session before has switched it off.
      registration.setInterest(.readable)
      return true
    }
    let registration = try loop.register(device.descriptor, .readable) { [weak self] _ in self?.answerMisses() }
    state.withLock { $0.registration = registration }
    return true
  }

  /// Sets the layout of a ring that starts, for the search for its next buffers; nil when it stops.
  func setLayout(_ layout: VirtQueue.Layout?, of ring: Int) {
    state.withLock { state in
      state.layouts[ring] = layout
      state.lookaheads[ring] = layout.map { RingLookahead($0) }
    }
  }

  /// Ends the connection with the unit for good, which refers to this object. Called after the rings have stopped,
  /// without a lock that an invalidation takes.
  func end() {
    let (port, registration) = state.withLock { state in
      defer { (state.port, state.registration) = (nil, nil) }
      return (state.port, state.registration)
    }
    registration?.cancel()
    port?.disconnect()
  }

  private func fail() { state.withLock { $0.handlers }?.fail() }

  // MARK: Misses

  /// Gives the kernel the translation of a used ring before the ring starts.
  /// - Returns: false if the unit refuses it.
  func prepare(_ address: UInt64) -> Bool {
    guard let port = state.withLock({ $0.port }) else { return false }
    var outcome = Outcome.notMapped
    let miss = VhostNet.Miss(address: address, reads: true, writes: true)
    do {
      try port.translate(address, for: [.read, .write], recordsFault: true) { outcome = install($0, for: miss) }
    } catch {
      return false
    }
    if outcome == .notMemory { port.noteUnclaimed() }
    return outcome == .installed
  }

  private func answerMisses() {
    let port = state.withLock { $0.port }
    var budget = Self.burst
    while budget > 0 {
      budget -= 1
      let miss: VhostNet.Miss?
      do {
        miss = try device.takeMiss()
      } catch {
        // Without messages the rings stand still.
        state.withLock { $0.registration }?.setInterest([])
        queueIsEmpty()
        return fail()
      }
      guard let miss else { return queueIsEmpty() }
      guard let port, !state.withLock({ $0.refused.isDraining }) else { continue }
      switch answer(miss, from: port) {
      case .done: break
      case .installed: budget -= lookAhead(from: miss, through: port)
      case .failed:
        // The queue may have more misses of the address.
        beginDraining()
        fail()
      }
    }
    continuation.schedule()
  }

  /// Empties the queue of misses while the rings pause.
  private func beginDraining() {
    let handlers = state.withLock { state in
      state.refused.beginDraining()
      return state.handlers
    }
    handlers?.pause()
  }

  private func queueIsEmpty() {
    let (consequence, handlers) = state.withLock { ($0.refused.queueIsEmpty(), $0.handlers) }
    switch consequence {
    case .nothing: break
    case .kick: handlers?.kick()
    case .resume: handlers?.resume()
    }
  }

  private enum Answer {
    case done
    case installed
    /// The ring cannot continue.
    case failed
  }

  private func answer(_ miss: VhostNet.Miss, from port: any RemoteDMAPort) -> Answer {
    // A buffer that wraps around the end of the address space confuses the kernel: it would ask without end.
    if miss.address > .max - UInt64(UInt32.max) { return .failed }
    var access: DMAAccess = []
    if miss.reads { access.insert(.read) }
    if miss.writes { access.insert(.write) }
    let isCurrent = state.withLock { $0.refused.isRepeated(miss.address) }
    var outcome = Outcome.notMapped
    do {
      try port.translate(miss.address, for: access, recordsFault: isCurrent) { outcome = install($0, for: miss) }
    } catch {
      // Bus Master Enable is clear, so the transport is about to stop the rings.
      if error == .disabled { return .done }
    }
    if outcome == .installed { return .installed }
    if !isCurrent {
      if state.withLock({ $0.refused.add(miss.address) }) { beginDraining() }
      return .done
    }
    if outcome == .notMemory { port.noteUnclaimed() }
    return .failed
  }

  /// Gives the kernel the translations of the buffers after a missed one.
  /// - Returns: the number of translations.
  private func lookAhead(from miss: VhostNet.Miss, through port: any RemoteDMAPort) -> Int {
    // Ring 0 receives, so the kernel writes to its buffers.
    let ring = miss.writes ? 0 : 1
    guard var lookahead = state.withLock({ $0.lookaheads[ring].take() }) else { return 0 }
    lookahead.search(memory, through: port, losses: losses.load(ordering: .acquiring))
    var known = DMARange(first: miss.address & ~0xfff, last: miss.address | 0xfff)
    var given = 0
    for buffer in lookahead.buffers { give(buffer, through: port, &known, &given) }
    state.withLock { state in
      if state.layouts[ring] == lookahead.layout { state.lookaheads[ring] = lookahead }
    }
    return given
  }

  /// - Parameters:
  ///   - known: the range that the kernel got last.
  ///   - given: the number of translations so far.
  private func give(
    _ buffer: RingLookahead.Buffer, through port: any RemoteDMAPort, _ known: inout DMARange, _ given: inout Int
  ) {
    let (last, overflow) = buffer.address.addingReportingOverflow(UInt64(max(buffer.count, 1)) - 1)
    if overflow || last > .max - UInt64(UInt32.max) { return }
    var address = buffer.address
    while address <= last, given < Self.aheadLimit {
      if !known.contains(address) {
        let miss = VhostNet.Miss(address: address, reads: !buffer.isWritten, writes: buffer.isWritten)
        var outcome = Outcome.notMapped
        try? port.translate(address, for: buffer.isWritten ? .write : .read, recordsFault: false) { mapping in
          outcome = install(mapping, for: miss)
          known = mapping.range
        }
        // The kernel will ask for the page if it needs it.
        if outcome != .installed { return }
        given += 1
      }
      if known.last >= last { return }
      address = known.last + 1
    }
  }

  private enum Outcome {
    case installed
    /// The unit has no translation with the rights.
    case notMapped
    /// The translation leads outside of RAM.
    case notMemory
    /// The kernel has no memory for the mapping.
    case refused
  }

  /// Gives the kernel the part of a mapping that lies in the region of RAM of the missed address.
  private func install(_ mapping: RemoteMapping, for miss: VhostNet.Miss) -> Outcome {
    let physical = mapping.physicalAddress &+ (miss.address &- mapping.range.first)
    guard mapping.range.contains(miss.address),
      let region = memory.regions.first(where: { $0.address <= physical && physical - $0.address < $0.size })
    else { return .notMemory }
    let before = min(miss.address - mapping.range.first, physical - region.address)
    let after = min(mapping.range.last - miss.address, region.size - 1 - (physical - region.address))
    let part = VhostNet.Mapping(
      address: miss.address - before, size: before + after + 1,
      hostAddress: memory.hostAddress(of: region) + (physical - region.address - before),
      isReadable: mapping.isReadable, isWritable: mapping.isWritable)
    do {
      // The kernel may hold the same pages with fewer rights, and would keep using that entry.
      if miss.writes { try device.invalidate(part.address, size: part.size) }
      try device.add(part)
      state.withLock { $0.refused.remove(DMARange(first: part.address, last: part.address + (part.size - 1))) }
      return .installed
    } catch {
      return .refused
    }
  }

  // MARK: RemoteIOTLB

  func invalidate(_ ranges: [DMARange], number: UInt64) -> RemoteInvalidation {
    do {
      for range in ranges {
        // A driver unmaps a single page after its use.
        if range.last &- range.first > 0xfff { losses.wrappingAdd(1, ordering: .releasing) }
        // The size of the whole address space does not fit. An entry is at least a page, so one byte less takes all.
        let (size, overflow) = (range.last &- range.first).addingReportingOverflow(1)
        try device.invalidate(range.first, size: overflow ? .max : size)
      }
    } catch {
      cutOff()
    }
    return .done
  }

  func cutOff() { state.withLock { $0.handlers }?.cut() }
}
