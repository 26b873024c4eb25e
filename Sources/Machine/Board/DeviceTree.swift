import Hardware
import PCI
import Synchronization

/// The devices of a board that runs: each from its admission until it is gone, with its functions and the way to take
/// them off. Names, paths and addresses in queries, errors and events come from here.
///
/// Lock order: its lock is a leaf. Devices are built and taken off without it.
final class DeviceTree: Sendable {
  /// A function on the bus, and what takes the device's side of it away.
  struct Part: Sendable {
    let function: Function
    let remove: @Sendable () -> Void
  }

  struct Entry {
    let device: Device
    var parts: [Part] = []
  }

  struct State {
    var admission: DeviceAdmission
    var entries: [Entry] = []
    /// Functions of the board itself, which no option asked for.
    var ownParts: [Part] = []
    var lastNumber: UInt64 = 0
    /// Devices without an id so far: their paths are not used again either.
    var anonymousCount = 0
  }

  let state: Mutex<State>

  /// - Parameter admission: what the machine has beside devices; it has admitted none yet.
  init(_ admission: DeviceAdmission = DeviceAdmission()) { state = Mutex(State(admission: admission)) }

  /// In the order of their admission.
  var all: [Device] { state.withLock { $0.entries.map(\.device) } }

  /// - Parameter address: on bus 0.
  func device(at address: RequesterID) -> Device? {
    state.withLock { $0.entries.first { $0.device.place == PCIPlace(address) }?.device }
  }

  /// The device that a function belongs to; nil for one of the board's own.
  func device(of function: Function) -> Device? {
    state.withLock { state in
      state.entries.first { entry in entry.parts.contains { $0.function === function } }?.device
    }
  }

  /// Takes a device up, if it fits beside those that are there. It has no function yet.
  func admit(_ options: any DeviceOptions) throws(DeviceProblem) -> Device {
    let admitted: Result<Device, DeviceProblem> = state.withLock { state in
      do throws(DeviceProblem) {
        let place = try state.admission.admit(options)
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
  func attach(_ part: Part, to identity: DeviceIdentity?) {
    state.withLock { state in
      if let index = state.entries.firstIndex(where: { $0.device.identity == identity }) {
        state.entries[index].parts.append(part)
      } else {
        state.ownParts.append(part)
      }
    }
  }

  /// Gives up a device. Its id, address and backends are free again.
  /// - Returns: the device and its functions, still on the bus; nil where it is gone already.
  func release(_ identity: DeviceIdentity) -> (device: Device, parts: [Part])? {
    state.withLock { state in
      guard let index = state.entries.firstIndex(where: { $0.device.identity == identity }) else { return nil }
      let entry = state.entries.remove(at: index)
      state.admission.release(entry.device.options, at: entry.device.place)
      return (entry.device, entry.parts)
    }
  }

  /// Gives up everything, at the end of the machine.
  /// - Returns: all functions, in the order in which they came.
  func releaseAll() -> [Part] {
    state.withLock { state in
      defer {
        for entry in state.entries { state.admission.release(entry.device.options, at: entry.device.place) }
        state.entries = []
        state.ownParts = []
      }
      return state.ownParts + state.entries.flatMap(\.parts)
    }
  }
}
