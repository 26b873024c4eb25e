import Linux
import Synchronization

/// A request to a running machine. The machine's thread carries it out and answers it.
public enum MachineRequest: Sendable {
  /// Stops the CPUs. The answer comes when no CPU is running.
  case pause
  /// Starts the CPUs again. The answer comes when they run.
  case resume
  /// Adds a device. The answer comes when the guest can find the device.
  case addDevice(DeviceDescription)
  /// Removes a device, named by its id or its path. The answer comes when the guest has been asked to give it up, or,
  /// in a surprise removal, when the device has left its bus.
  case removeDevice(String, isSurprise: Bool)
  case addNode(BlockNode)
  case removeNode(String)
  /// Adds an object. It must have an id.
  case addObject(any ObjectOptions)
  case removeObject(Identifier)
  /// Changes the size of a block node's file, in bytes. The answer comes when the disks that use the node have
  /// announced the new size to their drivers.
  case resizeNode(String, to: UInt64)
  /// Opens a netdev. It must have an id. The answer comes before a peer has connected.
  case addNetdev(any NetdevOptions)
  /// Closes a netdev, named by its id. A device that uses it loses its link.
  case removeNetdev(String)
  /// Sets whether the link of a network device or a netdev may be up.
  case setLink(String, up: Bool)
  /// Sets the effect of the guest's resets from now on.
  case setRebootAction(MachineConfiguration.RebootAction)

  /// Whether the CPUs stop as soon as the request is posted, before the machine's thread handles it.
  var haltsGuest: Bool {
    switch self {
    case .pause: true
    case .resume, .addDevice, .removeDevice, .addNode, .removeNode, .addObject, .removeObject, .resizeNode,
      .addNetdev, .removeNetdev, .setLink, .setRebootAction:
      false
    }
  }
}

/// The reason why a machine refused a request. The request has changed nothing.
public enum RequestError: Error, Sendable {
  /// The machine is ending, or has ended.
  case ended
  /// A passed-through device reported an error. The machine must be reset first.
  case needsReset
  /// Devices of this type cannot be hot-plugged: they are made with the board.
  case notPluggable
  case noSuchBus(String)
  /// Devices of this type do not fit the named bus, which has the given type.
  case wrongBus(typeName: String, DeviceBus)
  /// This bus accepts no changes while the machine runs.
  case noHotplug(bus: String)
  case noSuchDevice(String)
  /// The device is already being removed.
  case alreadyLeaving(String)
  /// The guest is busy with an earlier request for the slot.
  case guestBusy
  case property(typeName: String, PropertyError)
  /// The device does not fit the machine.
  case refused(typeName: String, DeviceProblem)
  /// A file or a device of the host, which the new device or backend needs, caused an error.
  case failed(StartError)
  case node(BlockNodeProblem)
  case backend(BackendProblem)
  /// The requester's monitor has no open file with that name. A number is not accepted either: it could be the
  /// descriptor of one of Nestling's own files.
  case noDescriptor(String)
  /// A read-only node cannot be resized.
  case readOnlyNode(String)
  case notResized(SystemError)
}

/// A request on its way to the machine's thread. It is answered once.
///
/// Lock order: code that holds its lock takes no other lock; the receiver is called without it.
final class PendingRequest: Hashable, Sendable {
  let request: MachineRequest
  private let receiver: Mutex<(@Sendable (RequestError?) -> Void)?>

  /// - Parameter receiver: called once with the answer, on the thread that `MachineControl.ask` describes. Must not
  ///   block.
  init(_ request: MachineRequest, _ receiver: @escaping @Sendable (RequestError?) -> Void = { _ in }) {
    self.request = request
    self.receiver = Mutex(receiver)
  }

  /// Gives the answer. A second answer is ignored.
  /// - Parameter error: nil if the request has been carried out.
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

/// An answer that a thread can wait for.
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
  /// Posts a request and waits until it is carried out. Must not be called on the machine's thread, nor while holding a
  /// lock that the machine's thread needs.
  public func perform(_ request: MachineRequest) throws(RequestError) {
    let slot = AnswerSlot()
    ask(request) { slot.give($0) }
    if let error = slot.wait() { throw error }
  }
}
