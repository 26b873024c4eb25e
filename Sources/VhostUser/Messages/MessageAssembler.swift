import Linux

/// Cuts a back end's bytes into messages. Descriptors belong to the message with whose bytes they come: senders attach
/// them to the header or to the payload.
///
/// The reader asks for exactly the bytes that the present message still needs, so no read mixes two messages, and the
/// buffer never exceeds the longest message.
struct MessageAssembler: Sendable {
  private var header: MessageHeader?
  private var bytes: [UInt8] = []
  private var descriptors: [SharedDescriptor] = []

  /// The most descriptors in one message (VHOST_USER_MAX_RAM_SLOTS).
  static let descriptorLimit = 8

  /// The number of bytes to read next; not zero.
  var needed: Int { (header.map { Int($0.size) } ?? MessageHeader.size) - bytes.count }

  /// Takes bytes of one read.
  /// - Parameter new: at most `needed`.
  /// - Returns: the message that they complete.
  mutating func take(
    _ new: [UInt8], _ passed: [SharedDescriptor]
  ) throws(VhostUserError) -> ReceivedMessage? {
    descriptors += passed
    if descriptors.count > Self.descriptorLimit {
      throw .descriptors(request: header?.request ?? 0, count: descriptors.count)
    }
    bytes += new
    if header == nil {
      guard bytes.count >= MessageHeader.size else { return nil }
      header = try MessageHeader(bytes)
      bytes.removeAll(keepingCapacity: true)
    }
    guard let header, bytes.count >= Int(header.size) else { return nil }
    let message = ReceivedMessage(header: header, payload: bytes, descriptors: descriptors)
    self = MessageAssembler()
    return message
  }
}
