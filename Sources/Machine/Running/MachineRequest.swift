import Linux
import Synchronization

/// What a monitor asks of a running machine. The machine's own thread carries it out and answers.
public enum MachineRequest: Sendable {
  /// Stops the CPUs. Answered when none runs.
  case pause
  /// Starts the CPUs again. Answered when they run.
  case resume
  /// Answered when the guest can find the device.
  case addDevice(DeviceDescription)
  /// By its id or its path. Answered when the guest has been asked for it, or, if it is a surprise, when the device has
  /// left its bus.
  case removeDevice(String, isSurprise: Bool)
  case addNode(BlockNode)
  case removeNode(String)
  /// One with an id.
  case addObject(any ObjectOptions)
  case removeObject(Identifier)
  /// Answered when the disks over the node have told their drivers of the new size, in bytes.
  case resizeNode(String, to: UInt64)
  /// What the guest's reset does from now on.
  case setRebootAction(MachineConfiguration.RebootAction)

  /// Whether the CPUs stop as soon as this is asked, before the machine's thread takes it up.
  var haltsGuest: Bool {
    switch self {
    case .pause: true
    case .resume, .addDevice, .removeDevice, .addNode, .removeNode, .addObject, .removeObject, .resizeNode,
      .setRebootAction:
      false
    }
  }
}

/// Why a machine did not carry out a request. Nothing has changed.
public enum RequestError: Error, Sendable {
  /// The machine ends, or has ended.
  case ended
  /// A device of the host failed the machine: a reset comes first.
  case needsReset
  /// Such a device is made with the board, and only then.
  case notPluggable
  case noSuchBus(String)
  /// The bus that is named is of this kind, which is not the device's.
  case wrongBus(typeName: String, DeviceBus)
  /// Nothing comes to this bus or goes from it while the machine runs.
  case noHotplug(bus: String)
  case noSuchDevice(String)
  /// The device is on its way out.
  case alreadyLeaving(String)
  /// It is answering an earlier request for the slot.
  case guestBusy
  case property(typeName: String, PropertyError)
  /// The device does not fit the machine as it is.
  case refused(typeName: String, DeviceProblem)
  /// What a device or a backend is over fails: a file, a device of the host.
  case failed(StartError)
  case node(BlockNodeProblem)
  case backend(BackendProblem)
  /// The asker's monitor has no open file of that name. A number may be of a file of Nestling's own.
  case noDescriptor(String)
  /// A node that is not for writing keeps its size.
  case readOnlyNode(String)
  case notResized(SystemError)
}

/// A request on its way to the machine's thread. It is answered once.
///
/// Lock order: its lock is a leaf; the answer is given without it.
final class PendingRequest: Hashable, Sendable {
  let request: MachineRequest
  private let receiver: Mutex<(@Sendable (RequestError?) -> Void)?>

  /// - Parameter receiver: called once, on the machine's thread or the asker's. It waits for nothing.
  init(_ request: MachineRequest, _ receiver: @escaping @Sendable (RequestError?) -> Void = { _ in }) {
    self.request = request
    self.receiver = Mutex(receiver)
  }

  /// - Parameter error: nil where the request has been carried out.
  func answer(_ error: RequestError? = nil) {
    let receiver = receiver.withLock { receiver in
      defer { receiver = nil }
      return receiver
    }
    receiver?(error)
  }

  static func == (a: PendingRequest, b: PendingRequest) -> Bool { a === b }
  func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(self)) }
}

/// Where an asker waits for the answer.
private final class AnswerSlot: Sendable {
  private let error = Mutex<RequestError?>(nil)
  private let given = Semaphore()

  func give(_ error: RequestError?) {
    self.error.withLock { $0 = error }
    given.signal()
  }

  func wait() -> RequestError? {
    given.wait()
    return error.withLock { $0 }
  }
}

extension MachineControl {
  /// Asks for something and waits until it is done. Must not be called on the machine's own thread, nor while holding
  /// anything that the machine's thread needs.
  public func perform(_ request: MachineRequest) throws(RequestError) {
    let slot = AnswerSlot()
    ask(request) { slot.give($0) }
    if let error = slot.wait() { throw error }
  }
}
