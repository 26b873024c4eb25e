import Linux

/// A node of the block layer, as `-drive` and `-blockdev` define it: a raw image file that a disk can use.
public struct BlockNode: Hashable, Sendable {
  /// The driver's name in QEMU, which only monitors show.
  public enum Driver: String, Hashable, Sendable {
    /// The file itself.
    case file
    /// The raw format over a file.
    case raw
  }

  /// The name that a device gives in `drive=`.
  public var id: String
  public var path: String
  public var readOnly: Bool
  /// Whether a guest's discard frees space in the file; otherwise it does nothing.
  public var discardUnmaps: Bool
  /// Whether a device that uses the file locks it against other programs; `auto`: if the host supports such locks.
  public var locking: OnOffAuto
  /// The node below this one (a file node below a raw node). Both have the same `path`.
  public var underlying: String?
  public var driver: Driver
  /// The open file that a monitor's client passed in a set (`path` is `/dev/fdset/N`); nil if Nestling opens `path`.
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

  /// Returns the node with the path, the file and the locking of the node below it.
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
