import Hardware
import Linux
import PCI
import Synchronization

/// Devices that come and go while the machine runs. What may wait for the host has a thread of its own: opening images,
/// pinning RAM, taking a device's host side down. No CPU stops for it.
///
/// - A device that comes is admitted on the machine's thread, built on the work queue's, and plugged on the machine's.
/// - A device that is to go stays until the guest gives it up, is reset, or it is pulled. It leaves its bus at once, on
///   whichever thread that is; its host side is taken down on the work queue's.
final class Hotplug: Sendable {
  private let board: Board
  private let configuration: MachineConfiguration
  private let tell: @Sendable (MachineNotice) -> Void
  /// Whether the guest has run since it was loaded.
  private let guestHasStarted: @Sendable () -> Bool
  private let work: any HostWork
  /// Time limits for guests that were asked for a device of the host, while they run.
  private let limits = Mutex<[DeviceIdentity: any OneShotTimer]>([:])
  /// Devices that wait until the guest has dropped what was pulled out of their slot: its driver must not take the one
  /// for the other.
  private let waiting = Mutex<[RequesterID: Waiting]>([:])

  private struct Waiting {
    var devices: [MachineEvent.Continuation] = []
    let timer: (any OneShotTimer)?
  }

  /// How long a device waits for a slot, in milliseconds. A guest that knows nothing of hotplug never drops anything.
  private static let slotPatience: UInt32 = 5000

  /// - Parameters:
  ///   - work: does what may wait for the host.
  ///   - tell: called on any thread. It waits for nothing.
  init(
    board: Board, configuration: MachineConfiguration, work: any HostWork = WorkQueue(name: "hotplug"),
    guestHasStarted: @escaping @Sendable () -> Bool, tell: @escaping @Sendable (MachineNotice) -> Void
  ) {
    self.board = board
    self.configuration = configuration
    self.work = work
    self.guestHasStarted = guestHasStarted
    self.tell = tell
    let events = board.events
    board.slots.onRelease { events.post(.slotReleased($0)) }
    board.slots.onRefusal { [weak self] in self?.refused(below: $0) }
    board.slots.onStatus { [weak self] in self?.report(below: $0, source: $1, status: $2) }
  }

  // MARK: Coming

  /// Begins to add a device. The request is answered when the guest can find it, or nothing of it is left.
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
      let rest = MachineEvent.Continuation { [self, board, guestHasStarted] in
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
        .continuation(.init({ [self] in insert(rest, below: device.place?.port) }, orElse: rest.cancel)))
    } catch {
      board.forget(device.identity)
      pending.answer(.failed(error))
    }
  }

  /// Takes down a device that was built and does not fit.
  private func undo(_ functions: [Function], of device: Device, _ pending: PendingRequest, _ error: RequestError) {
    let undo: @Sendable () -> Void = { [board] in
      board.revoke(functions)
      board.forget(device.identity)
      pending.answer(error)
    }
    work.submit(undo, orElse: undo)
  }

  /// Plugs a device in, now or when its slot is free.
  private func insert(_ rest: MachineEvent.Continuation, below port: RequesterID?) {
    guard let port, board.slots.awaitsRelease(below: port) else { return rest.run() }
    waiting.withLock { waiting in
      if waiting[port] == nil {
        let timer = try? board.clock.makeTimer()
        timer?.start(afterMilliseconds: Self.slotPatience) { [events = board.events] in events.post(.slotReleased(port))
        }
        waiting[port] = Waiting(timer: timer)
      }
      waiting[port]?.devices.append(rest)
    }
    // It may have been released just before.
    if !board.slots.awaitsRelease(below: port) { slotReleased(port) }
  }

  /// The guest starts anew: it is asked for nothing, has dropped everything, and finds what waited.
  func guestWasReset() {
    for port in waiting.withLock({ Array($0.keys) }) { slotReleased(port) }
  }

  /// The guest has dropped what was pulled out from below a port, or had its time.
  func slotReleased(_ port: RequesterID) {
    let ready = waiting.withLock { $0.removeValue(forKey: port) }
    for device in ready?.devices ?? [] { device.run() }
  }

  // MARK: Going

  /// Asks the guest for a device, or pulls it.
  func remove(_ name: String, isSurprise: Bool) throws(RequestError) {
    let device = try board.removableDevice(named: name)
    if isSurprise { board.pull(device) } else { try ask(for: device) }
  }

  private func ask(for device: Device) throws(RequestError) {
    guard board.devices.phase(of: device.identity) != .leaving else { throw .alreadyLeaving(device.name) }
    guard let place = device.place, let port = place.port else { return board.pull(device) }
    // The guest does not see the functions of a slot without function 0.
    guard guestHasStarted(), board.port(of: place)?.bus.function(at: 0) != nil else {
      return board.pull(device, isSurprise: false)
    }
    // Before the guest is asked: it may answer at once. All that is in the slot goes with it.
    board.devices.noteRemovalRequest(device.identity)
    board.trace.record(.removalRequested, device)
    switch board.slots.requestRemoval(below: port) {
    case .asked, .deferred: break
    case .unpowered: board.eject(below: port)
    case .busy: throw .guestBusy
    }
  }

  /// The host wants a device back: the guest is asked first, and loses it after a time.
  func takeBack(_ identity: DeviceIdentity, patience milliseconds: UInt32) {
    guard let device = board.devices.all.first(where: { $0.identity == identity }) else { return }
    guard device.place?.port != nil, milliseconds > 0, let timer = try? board.clock.makeTimer() else {
      return board.pull(device)
    }
    do throws(RequestError) {
      try ask(for: device)
    } catch {
      // It may be answering an earlier request; the time limit holds all the same.
    }
    // The host asks again and again; the limit counts from its first request.
    let isFirst = limits.withLock { limits in
      guard limits[identity] == nil else { return false }
      limits[identity] = timer
      return true
    }
    guard isFirst else { return }
    timer.start(afterMilliseconds: milliseconds) { [events = board.events] in events.post(.surpriseRemoval(identity)) }
  }

  func pull(_ identity: DeviceIdentity) {
    if let device = board.devices.all.first(where: { $0.identity == identity }) { board.pull(device) }
  }

  /// Takes down the host side of devices that have left their buses.
  func takeDown(_ identities: [DeviceIdentity]) {
    work.submit { [self] in
      for identity in identities {
        limits.withLock { $0[identity] = nil }
        if let device = board.finishLeaving(identity) { tell(.deviceDeleted(device.id, path: device.path)) }
      }
    } orElse: {
      // The machine ends, and takes them down with the others.
    }
  }

  /// The guest keeps what it was asked for.
  private func refused(below port: RequesterID) {
    for device in board.devices.withdrawRemovalRequests(below: port) {
      board.trace.record(.kept, device)
      tell(.unplugRefused(device.id, path: device.path))
    }
  }

  /// What the guest says about a notification (_OST; ACPI 6.5, 6.3.5).
  private func report(below port: RequesterID, source: UInt32, status: UInt32) {
    let device = board.devices.all.first { $0.place?.port == port }
    tell(.deviceStatus(device?.id, slot: port.description, source: Int64(source), status: Int64(status)))
    let isEjectRequest = source == 3 || source == 0x103
    // 0x84: the ejection goes on.
    if isEjectRequest, status != 0, status != 0x84 { refused(below: port) }
  }

  /// Nothing comes or goes any more.
  func stop() {
    work.stop()
    limits.withLock { $0 = [:] }
    let abandoned = waiting.withLock { waiting in
      defer { waiting = [:] }
      return waiting.values.flatMap(\.devices)
    }
    for device in abandoned { device.cancel() }
  }
}
