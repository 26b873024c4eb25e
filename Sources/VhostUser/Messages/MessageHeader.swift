import Hardware

/// The header of each vhost-user message: QEMU's docs/interop/vhost-user.rst, "Header". All numbers have the byte order
/// of the host, which is x86's.
struct MessageHeader: Hashable, Sendable {
  /// The requests of the two directions have numbers of their own.
  var request: UInt32
  var flags: Flags
  /// The number of bytes after the header.
  var size: UInt32

  struct Flags: OptionSet, Hashable, Sendable {
    let rawValue: UInt32

    /// Version 1 of the protocol; the version is in bits 1:0.
    static let version = Flags(rawValue: 1)
    static let reply = Flags(rawValue: 1 << 2)
    /// The receiver must answer, even a request that has no reply of its own.
    static let needReply = Flags(rawValue: 1 << 3)

    static let versionMask = Flags(rawValue: 3)
  }

  /// In bytes.
  static let size = 12
  /// The longest payload of a message from a back end: the whole configuration space, with its own header.
  static let payloadLimit = ConfigurationPayload.headerSize + ConfigurationPayload.limit

  init(request: UInt32, flags: Flags, size: UInt32) {
    self.request = request
    self.flags = flags
    self.size = size
  }

  /// Decodes the first 12 bytes of a message.
  /// - Throws: if the version or the size is one that no message from a back end has.
  init(_ bytes: [UInt8]) throws(VhostUserError) {
    guard bytes.count >= Self.size else { throw .messageSize(request: 0, size: UInt32(clamping: bytes.count)) }
    request = bytes.load(UInt32.self, at: 0)
    flags = Flags(rawValue: bytes.load(UInt32.self, at: 4))
    size = bytes.load(UInt32.self, at: 8)
    guard flags.intersection(.versionMask) == .version, flags.isSubset(of: [.versionMask, .reply, .needReply]) else {
      throw .messageFlags(request: request, flags: flags.rawValue)
    }
    guard size <= Self.payloadLimit else { throw .messageSize(request: request, size: size) }
  }

  var bytes: [UInt8] { [UInt8](littleEndian: request, flags.rawValue, size) }
}

/// A message that a back end has sent, complete, with the descriptors that came with it.
struct ReceivedMessage: Sendable {
  let header: MessageHeader
  let payload: [UInt8]
  /// Closed with the message, unless the receiver keeps them.
  let descriptors: [SharedDescriptor]
}

/// A message for the back end.
struct OutgoingMessage: Sendable {
  /// Header and payload.
  let bytes: [UInt8]
  let descriptors: [SharedDescriptor]
}

/// An open descriptor that goes to, or came from, another process.
public struct SharedDescriptor: Sendable {
  public let rawValue: Int32
  /// Keeps the descriptor open.
  private let owner: any AnyObject & Sendable

  public init(_ rawValue: Int32, owner: any AnyObject & Sendable) {
    self.rawValue = rawValue
    self.owner = owner
  }
}
