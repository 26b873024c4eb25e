import Devices
import Hardware
import Linux
import Vhost

/// A netdev's host side, from `netdev_add` or the start until `netdev_del` or the end.
protocol NetdevBackend: NetworkBackend {
  var link: NetdevLink { get }
  var status: NetdevStatus { get }

  /// Waits for the end of the start, if it needs another process. Called before the machine runs, by a caller that
  /// holds no lock; `netdev_add` does not wait.
  /// - Parameter nanoseconds: the limit. After it, the start goes on without a waiter.
  /// - Throws: the reason why the start has failed.
  func awaitStart(patience nanoseconds: UInt64) throws(NetdevOpenError)

  /// Prepares for a device. Called when the device is built, by a caller that holds no lock; may wait for a back end
  /// that is connecting.
  /// - Parameters:
  ///   - options: the device's.
  ///   - usesTranslation: whether an IOMMU translates the device's addresses.
  /// - Returns: the options, without those that the host's side lacks.
  func admit(
    _ options: VirtioOptions, usesTranslation: Bool
  ) throws(VhostUserProblem.Reason) -> VirtioOptions

  /// Sets the features that the admitted device offers its driver.
  func setOffered(_ features: VirtioFeatures)

  /// Ends the connection and releases the host's resources; a device that still uses the netdev sees its link go down.
  /// Called once, on any thread, by a caller that holds no lock.
  func close()
}

extension NetdevBackend {
  var isLinkUp: Bool { link.isUp }
  func connect(to frontend: any NetworkFrontend) { link.connect(to: frontend) }
  func awaitStart(patience nanoseconds: UInt64) throws(NetdevOpenError) {}
  func admit(
    _ options: VirtioOptions, usesTranslation: Bool
  ) throws(VhostUserProblem.Reason) -> VirtioOptions { options }
  func setOffered(_ features: VirtioFeatures) {}
}

/// The connection of a netdev, as monitors show it.
public enum NetdevStatus: Hashable, Sendable {
  case listening
  case connecting
  /// - Parameter peer: the other end; for a server, the address at which the client has connected.
  case connected(SocketAddress)
  case failed(SystemError)
  /// A datagram socket, which has no connection.
  case datagrams(local: SocketAddress, remote: SocketAddress)
  /// An interface of the host, by its name.
  case interface(String)
  /// A program that this process has started, by its process id.
  case process(Int32)
  /// A process that serves the queues, by the chardev over which it connects.
  case vhostUser(Identifier)
  /// The program has ended.
  case ended(ProgramFailure)
  /// There was a connection, and none is being made.
  case disconnected
  case closed
}

/// The machine services that a netdev uses.
struct NetdevHost {
  let loop: EventLoop
  let memory: GuestMemory
  let chardevs: Chardevs?
  let notify: @Sendable (MachineNotice) -> Void
}

/// A netdev type that can be opened: every type in `NetdevTypes`.
protocol NetdevOpening {
  /// Opens the backend. Does not wait for a peer.
  func open(on host: NetdevHost) throws(NetdevOpenError) -> any NetdevBackend
}

/// The reason why the host's side of a netdev cannot be opened.
public enum NetdevOpenError: Error, Hashable, Sendable {
  case system(SystemError)
  case tap(TapInterface.Problem)
  /// The open files belong to different interfaces.
  case differentInterfaces(String, String)
  case vhost(VhostNet.Problem)
  /// vhostfds has another number of files than the interface has queues.
  case vhostFileCount(Int, queues: Int)
  case chardev(ChardevProblem)
  case vhostUser(VhostUserProblem.Reason)
  /// PATH has no such program.
  case notInstalled(String)
  /// A program cannot be started.
  case program(String, SystemError)
  /// A program ended at its start.
  case ended(ProgramFailure)
}

/// The network of a device without a netdev: no packet arrives, and sent packets are lost.
final class NoNetwork: NetworkBackend {
  let capabilities = NetworkCapabilities()
  let isLinkUp = true

  func connect(to frontend: any NetworkFrontend) {}
  func setOffloads(_ offloads: NetworkOffloads) {}
  func setActivePairs(_ count: Int) {}
  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult { .dropped }
  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int { 0 }
}
