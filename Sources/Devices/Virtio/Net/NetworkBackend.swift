import Hardware

/// The host's side of a network device: a tap, a socket, a daemon.
///
/// No call blocks: a backend whose host call may wait makes that call on a thread of its own. The device calls `send`
/// and `receive` on the worker of the queue, so calls for one queue are serial, and calls for different queues are
/// concurrent. It makes the other calls one after another, on any thread, while it holds locks. So a backend must not
/// call its frontend within a call from the device, nor while it holds a lock that these calls take.
///
/// A backend whose host serves the rings directly (vhost) has a `datapath`, and moves no packets through this protocol
/// while it runs.
public protocol NetworkBackend: AnyObject, Sendable {
  /// Constant while a device uses the backend.
  var capabilities: NetworkCapabilities { get }

  /// Whether the link is up. After a change the backend calls `NetworkFrontend.linkChanged`.
  var isLinkUp: Bool { get }

  /// Sets the device that the backend calls, in place of an earlier one. The backend must keep a weak reference.
  func connect(to frontend: any NetworkFrontend)

  /// Sets the offloads that received packets may have. None before the first call. The backend may apply the change
  /// later: the device drops packets with other offloads.
  /// - Parameter offloads: a subset of `capabilities.receives`.
  func setOffloads(_ offloads: NetworkOffloads)

  /// Sets the number of queue pairs that carry packets: the pairs from 0 on. 1 before the first call.
  func setActivePairs(_ count: Int)

  /// The server of the receive and transmit queues outside the device model; nil if the device serves them. The device
  /// hands over only pairs of queues below `capabilities.pairs`.
  var datapath: (any QueueDatapath)? { get }

  /// Sets whether the device's link lets packets through, for the datapath.
  func deviceLinkChanged(isUp: Bool)

  /// Reports that the driver has reset the device, after the datapath was asked to stop its queues.
  func deviceReset()

  /// Sends one packet, or queues it; the segments may be reused after the call.
  /// - Parameters:
  ///   - header: requests only offloads in `capabilities.sends`. `bytes` is the form of a tap with a header of 12
  ///     bytes.
  ///   - segments: the Ethernet frame, without FCS: 14 to `NetworkHeader.frameLimit` bytes in RAM, in at most
  ///     `NetworkHeader.segmentLimit` segments.
  ///   - pair: the queue pair.
  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult

  /// Takes one received packet: a header of 12 bytes, which is zero if no offload is used, and an Ethernet frame.
  /// - Parameters:
  ///   - packet: has room for the largest packet. The backend drops a packet that is larger.
  ///   - pair: the queue pair.
  /// - Returns: the number of bytes at the front of `packet`; 0 if there is no packet now. After 0, the backend calls
  ///   `NetworkFrontend.packetsAvailable` as soon as there may be one. At any other time it keeps packets: the device
  ///   calls again when the driver has supplied buffers.
  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int
}

extension NetworkBackend {
  public var datapath: (any QueueDatapath)? { nil }
  public func deviceLinkChanged(isUp: Bool) {}
  public func deviceReset() {}
}

/// The outcome of `NetworkBackend.send`.
public enum NetworkSendResult: Hashable, Sendable {
  /// The backend has taken the packet.
  case sent
  /// The packet cannot be sent, now or later.
  case dropped
  /// There is no room now. The device sends the packet again after `NetworkFrontend.roomAvailable`.
  case full
}

/// The properties of a backend.
public struct NetworkCapabilities: Hashable, Sendable {
  /// The offloads that sent packets may request.
  public var sends: NetworkOffloads
  /// The offloads that received packets can have.
  public var receives: NetworkOffloads
  /// The number of queue pairs.
  public var pairs: Int
  /// The features of the process that serves the rings; nil if the device can serve them, too. The device offers those
  /// of `VirtioNet.ringFeatures` that are among them, and no change of the offloads while the driver runs.
  public var serverFeatures: VirtioFeatures?

  public init(
    sends: NetworkOffloads = [], receives: NetworkOffloads = [], pairs: Int = 1, serverFeatures: VirtioFeatures? = nil
  ) {
    self.sends = sends
    self.receives = receives
    self.pairs = pairs
    self.serverFeatures = serverFeatures
  }
}

/// A network device as its backend sees it. Calls may come on any thread, and may be spurious.
public protocol NetworkFrontend: AnyObject, Sendable {
  /// Reports that `receive` may return a packet again.
  func packetsAvailable(pair: Int)
  /// Reports that `send` has room again, after `full`.
  func roomAvailable(pair: Int)
  /// Reports a change of `isLinkUp`.
  func linkChanged()
}

/// Work that the sender of a packet leaves to the receiver: virtio 1.2, section 5.1.3.
public struct NetworkOffloads: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The checksum of the transport header is incomplete.
  public static let checksum = NetworkOffloads(rawValue: 0x01)
  /// TCP segmentation over IPv4 and IPv6.
  public static let tso4 = NetworkOffloads(rawValue: 0x02)
  public static let tso6 = NetworkOffloads(rawValue: 0x04)
  /// TCP segmentation of packets with the ECN bit (CWR) set.
  public static let ecn = NetworkOffloads(rawValue: 0x08)
  /// UDP fragmentation.
  public static let ufo = NetworkOffloads(rawValue: 0x10)
  /// UDP segmentation over IPv4 and IPv6.
  public static let uso4 = NetworkOffloads(rawValue: 0x20)
  public static let uso6 = NetworkOffloads(rawValue: 0x40)

  public static let all = NetworkOffloads(rawValue: 0x7f)
}
