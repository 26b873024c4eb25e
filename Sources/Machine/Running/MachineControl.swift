import Linux
import Synchronization

/// The requests to a running machine, from monitors, signals and the terminal. Any thread may make a request. The
/// machine's thread carries out most requests soon afterwards. Resizing a node, the requests about netdevs and links,
/// and pressing the power button happen on the caller's thread.
public protocol MachineControl: AnyObject, Sendable {
  var status: MachineStatus { get }

  /// Resets the guest, even if a reset by the guest itself would end Nestling (`setRebootAction`).
  func requestReset()
  /// Ends Nestling.
  func requestQuit(_ cause: MachineCause)
  /// Presses the power button, which asks the guest to shut down.
  func requestPowerDown()
  /// Makes a request. A request for the caller's thread is carried out before `ask` returns; any other request goes to
  /// the machine's thread. The call may block on a file that the request names.
  /// - Parameter answer: called once: with nil when the request has been carried out, otherwise with an error. Called
  ///   on the caller's thread if that thread carries out the request, and if the request is refused before it is
  ///   queued; otherwise on the machine's thread, or on a thread that does host work for the request. Must not wait for
  ///   the machine.
  func ask(_ request: MachineRequest, _ answer: @escaping @Sendable (RequestError?) -> Void)

  /// - Parameter listener: called for each notice, on the thread that caused it. Must not wait for the machine.
  func addListener(_ listener: @escaping @Sendable (MachineNotice) -> Void)
}

/// The states of QEMU's RunState that this machine distinguishes.
public enum MachineStatus: Hashable, Sendable {
  /// Built, but not started yet.
  case prelaunch
  case running
  case paused
  /// Stopped, because a passed-through device reported an error. The machine cannot continue before a reset.
  case internalError
  /// Ended.
  case shutdown
}

/// A change of the machine's state that is reported to listeners.
public enum MachineNotice: Hashable, Sendable {
  case tripleFault(processor: Int, instructionPointer: UInt64?)
  /// The guest is being reset. No CPU is running.
  case reset(MachineCause)
  /// The machine ends, for this cause.
  case shutdown(MachineCause)
  /// The power button was pressed.
  case powerDown
  case paused
  case resumed
  /// A device is gone. The values are its id, if it had one, and its path in the QOM tree.
  case deviceDeleted(Identifier?, path: String)
  /// The guest has refused to give up a device. The values are the device's id, if it has one, and its path.
  case unplugRefused(Identifier?, path: String)
  /// A `-netdev stream` has a connection now.
  case streamConnected(Identifier, SocketAddress)
  /// A `-netdev stream` has lost its connection.
  case streamDisconnected(Identifier)
  /// The back end of a `-netdev vhost-user` is connected, over a chardev.
  case vhostUserConnected(Identifier, chardev: Identifier)
  /// A `-netdev vhost-user` has lost its back end.
  case vhostUserDisconnected(Identifier)
  /// The kernel's vhost-net has refused a queue of a `-netdev tap`. Nestling moves its packets itself.
  case vhostRefused(SystemError)
  /// The program of a netdev has ended by itself. The link of the netdev is down from now on.
  case netdevProgramEnded(Identifier, ProgramFailure)
  /// The guest has reported by _OST how it handled a notification for a slot (ACPI 6.5, section 6.3.5). The id is nil
  /// if the slot is empty or its device has no id. `source` is the notification: 1 for a device check, 3 for an eject
  /// request. `status` is 0 for success.
  case deviceStatus(Identifier?, slot: String, source: Int64, status: Int64)
}

/// The implementation of `MachineControl`.
///
/// Lock order: code that holds its lock takes no other lock; listeners are called without it.
final class MachineController: MachineControl {
  private struct State {
    var status = MachineStatus.prelaunch
    var listeners: [@Sendable (MachineNotice) -> Void] = []
  }

  private let events: EventQueue
  private let board: Board
  private let quit: @Sendable (MachineCause) -> Void
  private let state = Mutex(State())

  /// - Parameter requestQuit: requests the end of the machine.
  init(events: EventQueue, board: Board, requestQuit: @escaping @Sendable (MachineCause) -> Void) {
    self.events = events
    self.board = board
    quit = requestQuit
  }

  var status: MachineStatus { state.withLock { $0.status } }

  func set(_ status: MachineStatus) { state.withLock { $0.status = status } }

  func requestReset() { events.post(.hostReset) }
  func requestQuit(_ cause: MachineCause) { quit(cause) }

  func ask(_ request: MachineRequest, _ answer: @escaping @Sendable (RequestError?) -> Void) {
    do throws(RequestError) {
      if try carryOutHere(request) { return answer(nil) }
    } catch {
      return answer(error)
    }
    do throws(StartError) {
      try request.checkFile(memory: board.memory)
    } catch {
      return answer(.failed(error))
    }
    events.post(.request(PendingRequest(request, answer)))
  }

  /// Carries out a request that may block on the host and does not need the machine's thread.
  /// - Returns: false if the request needs the machine's thread.
  private func carryOutHere(_ request: MachineRequest) throws(RequestError) -> Bool {
    switch request {
    case .resizeNode(let id, let size): try board.resizeNode(id, to: size)
    case .addNetdev(let options): try board.add(options)
    case .removeNetdev(let name): try board.removeNetdev(name)
    case .setLink(let name, let isUp): try board.setLink(name, up: isUp)
    case .pause, .resume, .addDevice, .removeDevice, .addNode, .removeNode, .addObject, .removeObject,
      .setRebootAction:
      return false
    }
    return true
  }

  func requestPowerDown() {
    notify(.powerDown)
    board.pressPowerButton()
  }

  func addListener(_ listener: @escaping @Sendable (MachineNotice) -> Void) {
    state.withLock { $0.listeners.append(listener) }
  }

  func notify(_ notice: MachineNotice) {
    for listener in state.withLock({ $0.listeners }) { listener(notice) }
  }
}
