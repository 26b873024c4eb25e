import Linux

/// The reason why a back end is given up.
public enum VhostUserError: Error, Hashable, Sendable {
  /// A message with a version or with flags that it must not have.
  case messageFlags(request: UInt32, flags: UInt32)
  /// A message with a payload that its request does not have.
  case messageSize(request: UInt32, size: UInt32)
  /// A reply to another request than the one that awaits its reply.
  case unexpectedReply(request: UInt32, awaited: FrontEndRequest?)
  /// A message with more or fewer descriptors than its request has.
  case descriptors(request: UInt32, count: Int)
  /// A value in a reply that the request does not allow.
  case reply(FrontEndRequest, value: UInt64)
  /// The back end answers a request with an error.
  case refused(FrontEndRequest, code: UInt64)
  /// The back end does not answer in time.
  case timeout(FrontEndRequest)
  /// The back end does not read requests, or the answers to its own ones.
  case notReading
  /// The back end has closed the connection.
  case closed
  /// The back end lacks features of the protocol that the device needs.
  case lacksProtocolFeatures(ProtocolFeatures)
  /// The back end lacks virtio features that the device needs, or that the driver has accepted.
  case lacksFeatures(UInt64)
  case tooFewQueues(available: UInt64, needed: Int)
  case system(SystemError)

  /// - Parameter error: of an operation on the connection.
  init(_ error: SystemError) { self = error.isDisconnection ? .closed : .system(error) }
}
