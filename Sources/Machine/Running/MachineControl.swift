import Synchronization

/// What may be asked of a machine that runs: by a monitor, a signal, a person. From any thread; a request is carried
/// out soon, by the machine's own thread.
public protocol MachineControl: AnyObject, Sendable {
  var status: MachineStatus { get }

  /// Resets the guest, whatever the guest's own reset does.
  func requestReset()
  /// Ends Nestling.
  func requestQuit(_ cause: MachineCause)
  /// Presses the power button: the guest is asked to shut itself down.
  func requestPowerDown()
  /// It may wait for a file that the request names.
  /// - Parameter answer: called once, with nil when the request has been carried out: on the machine's thread, or at
  ///   once where that cannot be. It must not wait for the machine.
  func ask(_ request: MachineRequest, _ answer: @escaping @Sendable (RequestError?) -> Void)

  /// - Parameter listener: told of what happens, on the thread that carries it out. It must not wait for the machine.
  func addListener(_ listener: @escaping @Sendable (MachineNotice) -> Void)
}

/// QEMU's RunState, as far as there is a difference here.
public enum MachineStatus: Hashable, Sendable {
  /// Built, and not started.
  case prelaunch
  case running
  case paused
  /// A device of the host failed it: a reset must come before it goes on.
  case internalError
  /// It has ended.
  case shutdown
}

/// What happened to the machine.
public enum MachineNotice: Hashable, Sendable {
  case tripleFault(processor: Int, instructionPointer: UInt64?)
  /// The guest is being reset; no CPU runs.
  case reset(MachineCause)
  /// The machine ends.
  case shutdown(MachineCause)
  /// The power button was pressed.
  case powerDown
  case paused
  case resumed
  /// A device is no more: its id, if it has one, and its path in QEMU's tree of objects.
  case deviceDeleted(Identifier?, path: String)
  /// The guest has refused to give up a device, named as for `deviceDeleted`.
  case unplugRefused(Identifier?, path: String)
  /// The guest has reported by _OST how it got on with the device of a slot (ACPI 6.5, 6.3.5): nil for a slot that is
  /// empty, or whose device has no id. `source` is the event that it reports on, 1 for a device check and 3 for an
  /// eject request; `status` is 0 for success.
  case deviceStatus(Identifier?, slot: String, source: Int64, status: Int64)
}

/// The machine's end of `MachineControl`.
///
/// Lock order: its lock is a leaf; listeners are called without it.
final class MachineController: MachineControl {
  private struct State {
    var status = MachineStatus.prelaunch
    var listeners: [@Sendable (MachineNotice) -> Void] = []
  }

  private let events: EventQueue
  private let board: Board
  private let quit: @Sendable (MachineCause) -> Void
  private let state = Mutex(State())

  /// - Parameter requestQuit: asks for the end of the machine.
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
    if case .resizeNode(let id, let size) = request {
      // Nothing of it is the machine's thread's to do, and it waits for the host.
      do throws(RequestError) {
        try board.resizeNode(id, to: size)
      } catch {
        return answer(error)
      }
      return answer(nil)
    }
    do throws(StartError) {
      try request.checkFile(memory: board.memory)
    } catch {
      return answer(.failed(error))
    }
    events.post(.request(PendingRequest(request, answer)))
  }

  func requestPowerDown() {
    tell(.powerDown)
    board.pressPowerButton()
  }

  func addListener(_ listener: @escaping @Sendable (MachineNotice) -> Void) {
    state.withLock { $0.listeners.append(listener) }
  }

  func tell(_ notice: MachineNotice) {
    for listener in state.withLock({ $0.listeners }) { listener(notice) }
  }
}
