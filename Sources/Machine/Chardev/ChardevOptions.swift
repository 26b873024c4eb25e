/// The options of a character device (`-chardev`), which describe the host's end. Names and defaults are QEMU's.
public protocol ChardevOptions: QOMOptions {
  /// Whether several frontends share the device; Ctrl-A C switches between them.
  var multiplexed: Bool { get set }
}

/// Every type of character device. A new type is its options, a line here, and the code in `ChardevEndpoint` that opens
/// it.
public enum ChardevTypes {
  public static let all: [any ChardevOptions.Type] = [
    SocketChardevOptions.self,
    StdioChardevOptions.self,
    FileChardevOptions.self,
    NullChardevOptions.self,
  ]

  public static func named(_ name: String) -> (any ChardevOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}

extension ChardevOptions {
  static func multiplexing(_ path: any WritableKeyPath<Self, Bool> & Sendable) -> Property<Self> {
    Property("mux", path, help: "Several frontends share it; Ctrl-A C switches to the next")
  }
}

/// `null`: drops all output and has no input.
public struct NullChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let typeName = "null"
  public static let summary = "Drops all output and has no input"
  public static let properties: [Property<Self>] = [multiplexing(\.multiplexed)]
}

/// `stdio`: Nestling's own standard input and output.
public struct StdioChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let typeName = "stdio"
  public static let summary = "Standard input and output, with the Ctrl-A commands"
  public static let properties: [Property<Self>] = [
    multiplexing(\.multiplexed),
    Property(
      "signal", settled: false, because: "every key goes to the guest; Ctrl-A X ends Nestling",
      help: "Ctrl-C ends Nestling"),
  ]
}

/// `file`: output only.
public struct FileChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false
  public var path = ""
  /// Whether the file keeps its content; otherwise it is truncated first.
  public var append = false

  public init() {}

  public static let typeName = "file"
  public static let summary = "Output into a file"
  public static let properties: [Property<Self>] = [
    Property("path", \.path, help: "File for the output"),
    Property("append", \.append, help: "Append to the file's content"),
    multiplexing(\.multiplexed),
  ]
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "chardev: file: no filename given") { !$0.path.isEmpty }
  ]
}
