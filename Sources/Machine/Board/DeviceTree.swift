import Hardware
import PCI
import Synchronization

/// The devices of a board that runs: each from its admission until it is gone, with its functions and the way to take
/// them off. Names, paths and addresses in queries, errors and events come from here.
///
/// Lock order: its lock is a leaf. Devices are built and taken off without it.
final class DeviceTree: Sendable {
  /// How far a device has come.
  enum Phase: Hashable, Sendable {
    /// Admitted; its functions are being built. Its id, address and backends are taken, and it is not listed.
    case building
    case plugged
    /// The guest has been asked to let it go.
    case removalRequested
    /// Off its bus for good; its host side is being taken down.
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
    /// Functions of the board itself, which no option asked for.
    var ownFunctions: [Function] = []
    var lastNumber: UInt64 = 0
    /// Devices without an id so far: their paths are not used again either.
    var anonymousCount = 0
    /// The machine has ended: nothing is admitted or plugged any more.
    var isClosed = false
  }

  let state: Mutex<State>

  /// - Parameter admission: what the machine has beside devices; it has admitted none yet.
  init(_ admission: DeviceAdmission = DeviceAdmission()) { state = Mutex(State(admission: admission)) }

  /// Those that are built, in the order of their admission.
  var all: [Device] { state.withLock { $0.entries.filter { $0.phase != .building }.map(\.device) } }

  func phase(of identity: DeviceIdentity) -> Phase? {
    state.withLock { $0.entries.first { $0.device.identity == identity }?.phase }
  }

  /// - Parameter address: on bus 0.
  func device(at address: RequesterID) -> Device? {
    state.withLock { $0.entries.first { $0.device.place == PCIPlace(address) }?.device }
  }

  /// The device that a function belongs to; nil for one of the board's own.
  func device(of function: Function) -> Device? {
    state.withLock { state in
      state.entries.first { entry in entry.functions.contains { $0 === function } }?.device
    }
  }

  /// Whether the device at a place says that there are other functions.
  func isMultifunction(at place: PCIPlace) -> Bool {
    state.withLock { state in
      let options = state.entries.first { $0.device.place == place }?.device.options
      return (options as? any PCIDeviceOptions)?.function.isMultifunction == true
    }
  }

  /// Takes a device up, if it fits beside those that are there. It has no function yet.
  /// - Parameter isHotplugged: the machine runs.
  func admit(_ options: any DeviceOptions, isHotplugged: Bool = false) throws(DeviceProblem) -> Device {
    let admitted: Result<Device, DeviceProblem> = state.withLock { state in
      do throws(DeviceProblem) {
        let place = try state.admission.admit(options, isHotplugged: isHotplugged)
        state.lastNumber += 1
        let path =
          options.id.map { "/machine/peripheral/\($0)" } ?? "/machine/peripheral-anon/device[\(state.anonymousCount)]"
        if options.id == nil { state.anonymousCount += 1 }
        let device = Device(
          identity: DeviceIdentity(number: state.lastNumber), options: options, place: place, path: path)
        state.entries.append(Entry(device: device))
        return .success(device)
      } catch {
        return .failure(error)
      }
    }
    return try admitted.get()
  }

  /// Notes a function that is on the bus now.
  /// - Parameter identity: of the device that it belongs to; nil for one of the board's own.
  /// - Returns: false where the device is gone, or the machine has ended: the caller takes the function off again.
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

  /// The device is complete.
  func finishBuilding(_ identity: DeviceIdentity) { change(identity, from: [.building], to: .plugged) }

  /// - Returns: false where the device is not there, or on its way out.
  @discardableResult
  func noteRemovalRequest(_ identity: DeviceIdentity) -> Bool {
    change(identity, from: [.plugged, .removalRequested], to: .removalRequested)
  }

  /// The guest keeps what is below a port.
  /// - Returns: the devices that it had been asked for.
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

  /// Marks devices as leaving. Each is returned once, also when two threads call.
  /// - Parameter chosen: by device and phase, among those that are plugged.
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

  /// The ports with a device below them that the guest has been asked for.
  var portsWithRemovalRequests: Set<RequesterID> {
    state.withLock { state in
      Set(state.entries.compactMap { $0.phase == .removalRequested ? $0.device.place?.port : nil })
    }
  }

  /// Gives up a device. Its id, address and backends are free again.
  /// - Returns: the device and its functions, still on the bus; nil where it is gone already.
  func release(_ identity: DeviceIdentity) -> (device: Device, functions: [Function])? {
    state.withLock { state in
      guard let index = state.entries.firstIndex(where: { $0.device.identity == identity }) else { return nil }
      let entry = state.entries.remove(at: index)
      state.admission.release(entry.device.options, at: entry.device.place)
      return (entry.device, entry.functions)
    }
  }

  /// Gives up everything, at the end of the machine.
  /// - Returns: all functions, in the order in which they came.
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
