/// The packets of one direction of a queue pair, for inspection. Bytes are those of Ethernet frames.
public struct NetworkReceiveCounters: Hashable, Sendable {
  /// Packets that the driver received.
  public var packets: UInt64 = 0
  public var bytes: UInt64 = 0
  /// Dropped: the receive filter does not accept the packet.
  public var filtered: UInt64 = 0
  /// Dropped: the link is down.
  public var linkDown: UInt64 = 0
  /// Dropped: the packet has an offload that the driver did not enable.
  public var offload: UInt64 = 0
  /// Dropped: the packet is shorter than an Ethernet header, longer than the MTU, or longer than any packet.
  public var size: UInt64 = 0
  /// Dropped: the packet does not fit the driver's buffer, or with merged buffers not the whole queue.
  public var buffer: UInt64 = 0
  /// Dropped: the driver's buffer could not be written.
  public var memory: UInt64 = 0

  public init() {}
}

/// The packets that the driver sends through one queue pair, for inspection. Bytes are those of Ethernet frames.
public struct NetworkTransmitCounters: Hashable, Sendable {
  /// Packets that the backend has taken.
  public var packets: UInt64 = 0
  public var bytes: UInt64 = 0
  /// Dropped: the link is down.
  public var linkDown: UInt64 = 0
  /// Dropped: the header is malformed, or requests an offload that was not negotiated.
  public var header: UInt64 = 0
  /// Dropped: the packet is shorter than an Ethernet header, too long, or in too many pieces.
  public var size: UInt64 = 0
  /// Dropped: the driver's buffer could not be read.
  public var memory: UInt64 = 0
  /// Dropped by the backend.
  public var backend: UInt64 = 0
  /// The number of times that the backend had no room, and the packet waited.
  public var waits: UInt64 = 0

  public init() {}
}
