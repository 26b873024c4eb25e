import Hardware
import PCI
import Synchronization

/// The devices of a running board, each from its admission until it is gone, with their functions. Names, paths and
/// addresses in queries, errors and events come from here.
///
/// Lock order: code that holds its lock takes no other lock. It is not held while devices are built or removed.
final class DeviceTree: Sendable {
  /// The phases of a device's life, in their order.
  enum Phase: Hashable, Sendable {
    /// Admitted: the device's id, address and backends are taken. Its functions are being built, and `all` does not
    /// list the device yet.
    case building
    case plugged
    /// The guest has been asked to give up the device.
    case removalRequested
    /// The device has left its bus for good. Its host resources are being released.
    case leaving
  }

  struct Entry {
    let device: Device
    var phase = Phase.building
    var functions: [Function] = []
  }

  struct State {
    var admission: DeviceAdmission
    var entries: [Entry] = []
    /// Functions of the board itself, which belong to no device.
    var ownFunctions: [Function] = []
    var lastNumber: UInt64 = 0
    /// The number of devices without an id so far. Their paths contain this number and are never reused.
    var anonymousCount = 0
    /// Whether the machine has ended. If so, no function may attach any more.
    var isClosed = false
  }

  let state: Mutex<State>

  /// - Parameter admission: has the machine's block nodes and objects, and has admitted no device yet.
  init(_ admission: DeviceAdmission = DeviceAdmission()) { state = Mutex(State(admission: admission)) }

  /// The devices whose functions are built, in the order of their admission.
  var all: [Device] { state.withLock { $0.entries.filter { $0.phase != .building }.map(\.device) } }

  func phase(of identity: DeviceIdentity) -> Phase? {
    state.withLock { $0.entries.first { $0.device.identity == identity }?.phase }
  }

  /// - Parameter address: on bus 0.
  func device(at address: RequesterID) -> Device? {
    state.withLock { $0.entries.first { $0.device.place == PCIPlace(address) }?.device }
  }

  /// Returns the device of a function; nil for a function of the board itself.
  func device(of function: Function) -> Device? {
    state.withLock { state in
      state.entries.first { entry in entry.functions.contains { $0 === function } }?.device
    }
  }

  /// Returns whether the device at a place has the property `multifunction=on`.
  func isMultifunction(at place: PCIPlace) -> Bool {
    state.withLock { state in
      let options = state.entries.first { $0.device.place == place }?.device.options
      return (options as? any PCIDeviceOptions)?.function.isMultifunction == true
    }
  }

  /// Adds a device, still without functions, if it fits the machine as it is.
  /// - Parameter isHotplugged: true while the machine runs.
  func admit(_ options: any DeviceOptions, isHotplugged: Bool = false) throws(DeviceProblem) -> Device {
    try state.withLock { (state) throws(DeviceProblem) in
      let place = try state.admission.admit(options, isHotplugged: isHotplugged)
      state.lastNumber += 1
      let path =
        options.id.map { "/machine/peripheral/\($0)" } ?? "/machine/peripheral-anon/device[\(state.anonymousCount)]"
      if options.id == nil { state.anonymousCount += 1 }
      let device = Device(
        identity: DeviceIdentity(number: state.lastNumber), options: options, place: place, path: path)
      state.entries.append(Entry(device: device))
      return device
    }
  }

  /// Records a function that is now on its bus.
  /// - Parameter identity: the device that the function belongs to; nil for a function of the board itself.
  /// - Returns: false if the device is gone or the machine has ended. The caller must then revoke the function.
  func attach(_ function: Function, to identity: DeviceIdentity?) -> Bool {
    state.withLock { state in
      if state.isClosed { return false }
      guard let identity else {
        state.ownFunctions.append(function)
        return true
      }
      guard let index = state.entries.firstIndex(where: { $0.device.identity == identity }) else { return false }
      state.entries[index].functions.append(function)
      return true
    }
  }

  /// Marks a device as plugged, after its last function is on the bus.
  func finishBuilding(_ identity: DeviceIdentity) { change(identity, from: [.building], to: .plugged) }

  /// Records that the guest is asked to give up a device.
  /// - Returns: false if the device is gone, leaving or not plugged yet.
  @discardableResult
  func noteRemovalRequest(_ identity: DeviceIdentity) -> Bool {
    change(identity, from: [.plugged, .removalRequested], to: .removalRequested)
  }

  /// Cancels the removal requests below a port, because the guest keeps the devices.
  /// - Returns: the devices that the guest had been asked for.
  func withdrawRemovalRequests(below port: RequesterID) -> [Device] {
    state.withLock { state in
      var kept: [Device] = []
      for index in state.entries.indices
      where state.entries[index].phase == .removalRequested && state.entries[index].device.place?.port == port {
        state.entries[index].phase = .plugged
        kept.append(state.entries[index].device)
      }
      return kept
    }
  }

  @discardableResult
  private func change(_ identity: DeviceIdentity, from: Set<Phase>, to phase: Phase) -> Bool {
    state.withLock { state in
      guard let index = state.entries.firstIndex(where: { $0.device.identity == identity }),
        from.contains(state.entries[index].phase)
      else { return false }
      state.entries[index].phase = phase
      return true
    }
  }

  /// Marks devices as leaving. Each device is returned only once, even if two threads call at the same time.
  /// - Parameter chosen: selects devices among those that are plugged, also if the guest has been asked to give them
  ///   up.
  func beginLeaving(where chosen: (Device, Phase) -> Bool) -> [Entry] {
    state.withLock { state in
      var leaving: [Entry] = []
      for index in state.entries.indices {
        let entry = state.entries[index]
        guard entry.phase == .plugged || entry.phase == .removalRequested, chosen(entry.device, entry.phase) else {
          continue
        }
        state.entries[index].phase = .leaving
        leaving.append(state.entries[index])
      }
      return leaving
    }
  }

  func functions(of identity: DeviceIdentity) -> [Function] {
    state.withLock { $0.entries.first { $0.device.identity == identity }?.functions ?? [] }
  }

  /// The ports above the devices that the guest has been asked to give up.
  var portsWithRemovalRequests: Set<RequesterID> {
    state.withLock { state in
      Set(state.entries.compactMap { $0.phase == .removalRequested ? $0.device.place?.port : nil })
    }
  }

  /// Removes a device from the tree. Its id, address and backends are free again.
  /// - Returns: the device and its functions, which the caller must revoke; nil if the device is gone already.
  func release(_ identity: DeviceIdentity) -> (device: Device, functions: [Function])? {
    state.withLock { state in
      guard let index = state.entries.firstIndex(where: { $0.device.identity == identity }) else { return nil }
      let entry = state.entries.remove(at: index)
      state.admission.release(entry.device.options, at: entry.device.place)
      return (entry.device, entry.functions)
    }
  }

  /// Removes everything from the tree, at the end of the machine.
  /// - Returns: all functions, the board's first, then those of the devices in the order of their admission.
  func releaseAll() -> [Function] {
    state.withLock { state in
      defer {
        for entry in state.entries { state.admission.release(entry.device.options, at: entry.device.place) }
        state.entries = []
        state.ownFunctions = []
        state.isClosed = true
      }
      return state.ownFunctions + state.entries.flatMap(\.functions)
    }
  }
}
