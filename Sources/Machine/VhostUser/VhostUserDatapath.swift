import Devices
import Hardware
import Linux
import VhostUser

/// The service of a virtio device's queues by a vhost-user back end. The session carries out what the transport asks
/// for, without waiting.
protocol VhostUserDatapath: QueueDatapath {
  var session: VhostUserSession { get }
  var memory: GuestMemory { get }
  /// The back end's cache of translations; nil if the device uses guest physical addresses.
  var translation: VhostUserTranslation? { get }
}

extension VhostUserDatapath {
  /// - Parameter translation: the back end's cache of translations; nil if the queue has guest physical addresses.
  func ring(of queue: DatapathQueue, _ translation: VhostUserTranslation?) -> Ring {
    let (layout, memory) = (queue.layout, memory)
    return Ring(
      size: layout.size, descriptorArea: layout.descriptorArea, driverArea: layout.driverArea,
      deviceArea: layout.deviceArea, startIndex: queue.startIndex, kick: SharedDescriptor(queue.kick),
      call: queue.call.map { SharedDescriptor($0) },
      usedIndex: {
        // struct virtq_used: flags, then the index.
        let address = layout.deviceArea &+ 2
        guard let translation else { return memory.loadUInt16(at: address) }
        return translation.physicalAddress(of: address).flatMap { memory.loadUInt16(at: $0) }
      }, fail: queue.fail)
  }

  func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> DatapathStop {
    translation?.stop(queue: index)
    return switch session.stop(queue: index, completion) {
    case .stopped(let next): .stopped(next)
    case .pending: .pending
    }
  }

  func setCall(_ call: Notifier?, queue index: Int) {
    session.setCall(call.map { SharedDescriptor($0) }, queue: index)
  }
}

extension SharedDescriptor {
  init(_ notifier: Notifier) { self.init(notifier.descriptor, owner: NotifierOwner(notifier)) }

  private final class NotifierOwner: Sendable {
    let notifier: Notifier
    init(_ notifier: Notifier) { self.notifier = notifier }
  }
}
