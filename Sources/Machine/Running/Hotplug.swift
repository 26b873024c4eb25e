import Hardware
import Linux
import PCI
import Synchronization

/// Adds and removes devices while the machine runs. Work that may block on the host runs on a work queue with its own
/// thread: opening images, pinning RAM, releasing a device's host resources. No CPU stops for it.
///
/// - A new device is admitted on the machine's thread, built on the work queue's thread, and plugged in on the
///   machine's thread.
/// - A device stays until the guest gives it up, the guest is reset, or the host removes it by surprise. It leaves its
///   bus at once, on the thread where that happens. The work queue's thread then releases its host resources.
final class Hotplug: Sendable {
  private let board: Board
  private let configuration: MachineConfiguration
  private let notify: @Sendable (MachineNotice) -> Void
  /// Whether the guest has run since it was loaded.
  private let guestHasStarted: @Sendable () -> Bool
  private let work: any HostWork
  /// Running timers, each for a device that the host wants back. When one expires, the host removes its device by
  /// surprise.
  private let removalTimers = Mutex<[DeviceIdentity: any OneShotTimer]>([:])
  /// Devices that wait for their slot, by port. After a surprise removal, the guest must first release the old device,
  /// or its driver would take the new device for the old one.
  private let waiting = Mutex<[RequesterID: Waiting]>([:])

  private struct Waiting {
    /// For each waiting device, the step that plugs it in.
    var insertions: [MachineEvent.Continuation] = []
    let timer: any OneShotTimer
  }

  /// The longest time that a device waits for a slot, in milliseconds. A limit is needed because a guest without
  /// hotplug support never releases a device.
  private static let slotTimeout: UInt32 = 5000

  /// - Parameters:
  ///   - work: runs the work that may block on the host.
  ///   - notify: called on any thread. Must not block.
  init(
    board: Board, configuration: MachineConfiguration, work: any HostWork = WorkQueue(name: "hotplug"),
    guestHasStarted: @escaping @Sendable () -> Bool, notify: @escaping @Sendable (MachineNotice) -> Void
  ) {
    self.board = board
    self.configuration = configuration
    self.work = work
    self.guestHasStarted = guestHasStarted
    self.notify = notify
    let events = board.events
    board.slots.listen { handlers in
      handlers.release = { events.post(.slotReleased($0)) }
      handlers.refusal = { [weak self] in self?.removalRefused(below: $0) }
      handlers.status = { [weak self] in self?.statusReported(below: $0, source: $1, status: $2) }
    }
  }

  // MARK: Adding

  /// Begins to add a device. Answers the request when the guest can find the device, or after an error, when nothing of
  /// the device remains.
  func add(_ description: DeviceDescription, answering pending: PendingRequest) {
    let device: Device
    do throws(RequestError) {
      device = try board.admit(description)
    } catch {
      return pending.answer(error)
    }
    work.submit { [self] in
      build(device, answering: pending)
    } orElse: { [board] in
      board.forget(device.identity)
      pending.answer(.ended)
    }
  }

  private func build(_ device: Device, answering pending: PendingRequest) {
    do throws(StartError) {
      let functions = try board.build(device, with: configuration)
      let insertion = MachineEvent.Continuation { [self, board, guestHasStarted] in
        do throws(StartError) {
          try board.insert(functions, of: device, announcing: guestHasStarted())
          pending.answer()
        } catch {
          self.undo(functions, of: device, pending, .failed(error))
        }
      } orElse: { [board] in
        board.revoke(functions)
        board.forget(device.identity)
        pending.answer(.ended)
      }
      board.events.post(
        .continuation(.init({ [self] in schedule(insertion, below: device.place?.port) }, orElse: insertion.cancel)))
    } catch {
      board.forget(device.identity)
      pending.answer(.failed(error))
    }
  }

  /// Revokes and releases a device that was built but could not be plugged in.
  private func undo(_ functions: [Function], of device: Device, _ pending: PendingRequest, _ error: RequestError) {
    let undo: @Sendable () -> Void = { [board] in
      board.revoke(functions)
      board.forget(device.identity)
      pending.answer(error)
    }
    work.submit(undo, orElse: undo)
  }

  /// Runs an insertion now, or when its slot is free.
  private func schedule(_ insertion: MachineEvent.Continuation, below port: RequesterID?) {
    guard let port, board.slots.awaitsRelease(below: port) else { return insertion.run() }
    waiting.withLock { waiting in
      if waiting[port] == nil {
        let timer = board.clock.makeTimer()
        timer.start(afterMilliseconds: Self.slotTimeout) { [events = board.events] in
          events.post(.slotReleased(port))
        }
        waiting[port] = Waiting(timer: timer)
      }
      waiting[port]?.insertions.append(insertion)
    }
    // The guest may have released the slot between the check and the lock.
    if !board.slots.awaitsRelease(below: port) { slotReleased(port) }
  }

  /// Plugs in all waiting devices after a reset: the restarted guest uses no earlier device, and finds the new ones.
  func guestWasReset() {
    for port in waiting.withLock({ Array($0.keys) }) { slotReleased(port) }
  }

  /// Plugs in the devices that wait for a slot, after the guest released the old device or the wait timed out.
  func slotReleased(_ port: RequesterID) {
    let ready = waiting.withLock { $0.removeValue(forKey: port) }
    for insertion in ready?.insertions ?? [] { insertion.run() }
  }

  // MARK: Removal

  /// Asks the guest to give up a device, or removes the device by surprise.
  func remove(_ name: String, isSurprise: Bool) throws(RequestError) {
    let device = try board.removableDevice(named: name)
    if isSurprise { board.pull(device) } else { try requestRemoval(of: device) }
  }

  private func requestRemoval(of device: Device) throws(RequestError) {
    guard board.devices.phase(of: device.identity) != .leaving else { throw .alreadyLeaving(device.name) }
    guard let place = device.place, let port = place.port else { return board.pull(device) }
    // The guest cannot see the functions of a slot without function 0, so it cannot give them up either.
    guard guestHasStarted(), board.port(of: place)?.bus.function(at: 0) != nil else {
      return board.pull(device, isSurprise: false)
    }
    // Record the request before asking: the guest may answer at once. The guest gives up all devices of the slot
    // together.
    board.devices.noteRemovalRequest(device.identity)
    board.trace.record(.removalRequested, device)
    switch board.slots.requestRemoval(below: port) {
    case .asked, .deferred: break
    case .unpowered: board.eject(below: port)
    case .busy: throw .guestBusy
    }
  }

  /// Returns a device to the host: asks the guest to give up the device, and removes it by surprise after `patience`
  /// milliseconds.
  func takeBack(_ identity: DeviceIdentity, patience milliseconds: UInt32) {
    guard let device = board.devices.all.first(where: { $0.identity == identity }) else { return }
    guard device.place?.port != nil, milliseconds > 0 else { return board.pull(device) }
    let timer = board.clock.makeTimer()
    do throws(RequestError) {
      try requestRemoval(of: device)
    } catch {
      // The guest may be busy with an earlier request. The time limit applies anyway.
    }
    // The host repeats its request. The time limit counts from the first one.
    let isFirst = removalTimers.withLock { removalTimers in
      guard removalTimers[identity] == nil else { return false }
      removalTimers[identity] = timer
      return true
    }
    guard isFirst else { return }
    timer.start(afterMilliseconds: milliseconds) { [events = board.events] in events.post(.surpriseRemoval(identity)) }
  }

  func pull(_ identity: DeviceIdentity) {
    if let device = board.devices.all.first(where: { $0.identity == identity }) { board.pull(device) }
  }

  /// Releases the host resources of devices that have left their buses, and notifies the listeners that they are gone.
  func takeDown(_ identities: [DeviceIdentity]) {
    work.submit { [self] in
      for identity in identities {
        removalTimers.withLock { $0[identity] = nil }
        if let device = board.finishLeaving(identity) { notify(.deviceDeleted(device.id, path: device.path)) }
      }
    } orElse: {
      // The machine ends. It releases these devices with all others.
    }
  }

  /// Records and announces that the guest refuses to give up the devices below a port.
  private func removalRefused(below port: RequesterID) {
    for device in board.devices.withdrawRemovalRequests(below: port) {
      board.trace.record(.kept, device)
      notify(.unplugRefused(device.id, path: device.path))
    }
  }

  /// Handles the guest's report about a notification (_OST; ACPI 6.5, section 6.3.5).
  private func statusReported(below port: RequesterID, source: UInt32, status: UInt32) {
    let device = board.devices.all.first { $0.place?.port == port }
    notify(.deviceStatus(device?.id, slot: port.description, source: Int64(source), status: Int64(status)))
    let isEjectRequest = source == 3 || source == 0x103
    // 0x84: the ejection is in progress.
    if isEjectRequest, status != 0, status != 0x84 { removalRefused(below: port) }
  }

  /// Stops adding and removing devices, and cancels the insertions that wait, at the end of the machine.
  func stop() {
    work.stop()
    removalTimers.withLock { $0 = [:] }
    let abandoned = waiting.withLock { waiting in
      defer { waiting = [:] }
      return waiting.values.flatMap(\.insertions)
    }
    for insertion in abandoned { insertion.cancel() }
  }
}
