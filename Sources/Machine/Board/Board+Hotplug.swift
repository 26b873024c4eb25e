import Hardware
import Linux
import PCI

/// Hotplug below root ports while the guest runs.
extension Board {
  /// Plugs a device in below a port, and announces the device when its function 0 has been added. As in QEMU, the
  /// functions above 0 are added first.
  /// - Parameter announcing: false before the guest starts: a starting guest finds the device without an announcement.
  /// - Throws: the reason why the device cannot be plugged in. The caller then revokes the functions, which may block
  ///   on the host.
  func insert(_ functions: [Function], of device: Device, announcing: Bool = true) throws(StartError) {
    if let problem = roomProblem(functions, at: device.place) { throw .window(problem) }
    try plug(functions, of: device)
    announce(device, toGuest: announcing)
  }

  /// Announces a slot's functions to the guest if this device is function 0, because function 0 makes all of them
  /// visible.
  func announce(_ device: Device, toGuest: Bool) {
    guard let place = device.place, let port = place.port, place.address.function == 0 else { return }
    slots.inserted(below: port, announcing: toGuest)
  }

  /// Checks whether the BARs of new functions fit the windows of the port above them: the windows that the guest
  /// has set, or those that were placed at the start.
  /// - Returns: nil if they fit one of the two, or if no windows have been placed yet.
  private func roomProblem(_ functions: [Function], at place: PCIPlace?) -> WindowProblem? {
    guard let place, let port = port(of: place), let placed = placedWindows(of: port) else { return nil }
    let all = port.bus.all + functions
    guard port.header.problem(placing: all) != nil, let problem = placed.problem(placing: all) else { return nil }
    return WindowProblem(port: port.function.requester.id, bar: problem.bar ?? 0, size: problem.size)
  }

  /// Releases a device that has no function on a bus.
  func forget(_ identity: DeviceIdentity) {
    if let (device, _) = devices.release(identity) { trace.record(.givenUp, device) }
  }

  /// Removes the devices below a port, after the guest gave them up.
  func eject(below port: RequesterID) { leave { device, _ in device.place?.port == port } }

  /// Removes devices from their buses, at once and for good, and marks their slots as empty. Does not block: it only
  /// posts `MachineEvent.left`. The machine's thread then releases the host resources.
  /// - Parameters:
  ///   - isSurprise: true if the guest did not give the devices up.
  ///   - chosen: selects the devices. It must select all devices of a slot or none.
  func leave(isSurprise: Bool = false, where chosen: (Device, DeviceTree.Phase) -> Bool) {
    let entries = devices.beginLeaving(where: chosen)
    guard !entries.isEmpty else { return }
    let start = trace.isOn(.leftBus) ? Clock.monotonic() : 0
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

  /// Removes a device that the guest did not give up, together with the other devices in its slot.
  /// - Parameter isSurprise: false if the guest has never seen the device.
  func pull(_ device: Device, isSurprise: Bool = true) {
    leave(isSurprise: isSurprise) { other, _ in
      other.identity == device.identity || device.place?.port != nil && other.place?.port == device.place?.port
    }
  }

  /// Completes the requested removals at a reset, when the guest gives up all devices. No CPU is running.
  func completeRemovals() {
    let ports = devices.portsWithRemovalRequests
    leave { device, phase in
      phase == .removalRequested || device.place?.port.map { ports.contains($0) } == true
    }
  }

  /// Releases the host resources of a device that has left its bus. May block on the host for any length of time.
  /// - Returns: nil if the device is gone already.
  func finishLeaving(_ identity: DeviceIdentity) -> Device? {
    let times = devices.functions(of: identity).map { $0.revoke(now: Clock.monotonic) }
    guard let device = devices.release(identity)?.device else { return nil }
    trace.record(.drained, device, [.number("ns", times.reduce(0) { $0 &+ $1.drain })])
    trace.record(.released, device, [.number("ns", times.reduce(0) { $0 &+ $1.release })])
    trace.record(.deleted, device)
    return device
  }
}
