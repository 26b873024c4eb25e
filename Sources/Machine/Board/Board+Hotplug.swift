import Hardware
import Linux
import PCI

/// Devices that come and go below root ports while the guest runs.
extension Board {
  /// Plugs a device in below a port, and announces it once its function 0 is there: functions above 0 come first, as in
  /// QEMU.
  /// - Parameter announcing: false before the guest starts, which finds the device by itself.
  /// - Throws: what is in the way. The caller takes the functions down, which may wait for the host.
  func insert(_ functions: [Function], of device: Device, announcing: Bool = true) throws(StartError) {
    if let problem = roomProblem(functions, at: device.place) { throw .window(problem) }
    try plug(functions, of: device)
    announce(device, toGuest: announcing)
  }

  /// Function 0 makes all of a device visible.
  func announce(_ device: Device, toGuest: Bool) {
    guard let place = device.place, let port = place.port, place.address.function == 0 else { return }
    slots.inserted(below: port, announcing: toGuest)
  }

  /// Whether the BARs of new functions have no room in the windows of the port above, neither as the guest has set them
  /// nor as they were placed at the start.
  private func roomProblem(_ functions: [Function], at place: PCIPlace?) -> WindowProblem? {
    guard let place, let port = port(of: place), let placed = placedWindows(of: port) else { return nil }
    let all = port.bus.all + functions
    guard port.header.problem(placing: all) != nil, let problem = placed.problem(placing: all) else { return nil }
    return WindowProblem(port: port.function.requester.id, bar: problem.bar ?? 0, size: problem.size)
  }

  /// Gives up a device of which nothing is plugged.
  func forget(_ identity: DeviceIdentity) {
    if let (device, _) = devices.release(identity) { trace.record(.givenUp, device) }
  }

  /// The guest gave up what is below a port.
  func eject(below port: RequesterID) { leave { device, _ in device.place?.port == port } }

  /// Takes devices off their buses, at once and for good; a port's with all that is in its slot. Their host side is
  /// taken down by the machine, which hears of it by `MachineEvent.left`. Waits for nothing.
  /// - Parameter isSurprise: the guest did not give them up.
  func leave(isSurprise: Bool = false, where chosen: (Device, DeviceTree.Phase) -> Bool) {
    let entries = devices.beginLeaving(where: chosen)
    guard !entries.isEmpty else { return }
    let start = trace.tells(.leftBus) ? Clock.monotonic() : 0
    for function in entries.flatMap(\.functions) { function.refuse() }
    for port in Set(entries.compactMap(\.device.place?.port)) {
      slots.emptied(below: port, isSurprise: isSurprise)
    }
    for entry in entries {
      trace.record(
        .leftBus, entry.device, [.flag("surprise", isSurprise), .number("ns", Clock.monotonic() &- start)])
    }
    events.post(.left(entries.map(\.device.identity)))
  }

  /// Takes a device away that the guest did not give up, and with it what shares its slot.
  /// - Parameter isSurprise: false where the guest has not seen the device.
  func pull(_ device: Device, isSurprise: Bool = true) {
    leave(isSurprise: isSurprise) { other, _ in
      other.identity == device.identity || device.place?.port != nil && other.place?.port == device.place?.port
    }
  }

  /// Completes removals that the guest was asked for: a reset lets go of everything. No CPU is running.
  func completeRemovals() {
    let ports = devices.portsWithRemovalRequests
    leave { device, phase in
      phase == .removalRequested || device.place?.port.map { ports.contains($0) } == true
    }
  }

  /// Takes down the host side of a device that has left its bus. It may wait for the host, for as long as that takes.
  /// - Returns: nil where it is gone already.
  func finishLeaving(_ identity: DeviceIdentity) -> Device? {
    let times = devices.functions(of: identity).map { $0.revoke(now: Clock.monotonic) }
    guard let device = devices.release(identity)?.device else { return nil }
    trace.record(.drained, device, [.number("ns", times.reduce(0) { $0 &+ $1.drain })])
    trace.record(.released, device, [.number("ns", times.reduce(0) { $0 &+ $1.release })])
    trace.record(.deleted, device)
    return device
  }
}
