import Linux

/// A file that a disk may be over, as `-drive` and `-blockdev` name it. Every one is raw.
public struct BlockNode: Hashable, Sendable {
  /// What QEMU calls it; nothing else depends on it.
  public enum Driver: String, Hashable, Sendable {
    /// The file itself.
    case file
    /// The raw format over a file.
    case raw
  }

  /// What a device's `drive=` names.
  public var id: String
  public var path: String
  public var readOnly: Bool
  /// Whether a guest's discard frees space in the file; else it does nothing.
  public var discardUnmaps: Bool
  /// Whether the file is locked against other users while a device uses it; auto: where the host has such locks.
  public var locking: OnOffAuto
  /// The node that this one is laid over (a raw node over a file node). `path` is the same.
  public var underlying: String?
  public var driver: Driver
  /// The open file that a monitor's client handed over in a set (`path` is `/dev/fdset/N`); nil to open `path`.
  public var file: PassedDescriptor?

  public init(
    id: String, path: String, readOnly: Bool = false, discardUnmaps: Bool = false, locking: OnOffAuto = .auto,
    underlying: String? = nil, driver: Driver = .raw
  ) {
    self.id = id
    self.path = path
    self.readOnly = readOnly
    self.discardUnmaps = discardUnmaps
    self.locking = locking
    self.underlying = underlying
    self.driver = driver
  }

  /// The node as it is over the one that it names: with that one's file.
  public func laid(over below: BlockNode) -> BlockNode {
    var node = self
    node.path = below.path
    node.file = below.file
    node.locking = below.locking
    // A discard reaches the file only if every node on the way passes it on.
    node.discardUnmaps = discardUnmaps && below.discardUnmaps
    return node
  }
}
